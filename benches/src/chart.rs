//! Charts in SVG: horizontal bars and small lines, every number written beside its mark, readable on light and dark.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 250.0;
const BAR: f64 = 18.0;
const GAP: f64 = 8.0;
const LINE_HEIGHT: f64 = 150.0;

/// A chart: panels below each other.
pub struct Chart {
    /// Above all.
    pub title: String,
    /// From top to bottom.
    pub panels: Vec<Panel>,
}

/// One part of a chart.
pub enum Panel {
    /// Bars.
    Bars(Bars),
    /// A line.
    Line(Line),
}

impl From<Bars> for Panel {
    fn from(bars: Bars) -> Self {
        Self::Bars(bars)
    }
}

impl From<Line> for Panel {
    fn from(line: Line) -> Self {
        Self::Line(line)
    }
}

/// Horizontal bars from zero.
pub struct Bars {
    /// What they show, and in which unit.
    pub title: String,
    /// Digits after the point.
    pub digits: usize,
    /// From top to bottom.
    pub bars: Vec<Bar>,
    /// A value to hold them against, drawn as a dashed line.
    pub mark: Option<f64>,
}

/// One bar.
pub struct Bar {
    /// Its name.
    pub name: String,
    /// How long it is.
    pub value: f64,
    /// Ours, or what ours is held against.
    pub is_ours: bool,
}

/// A line from zero up.
pub struct Line {
    /// What it shows.
    pub title: &'static str,
    /// Written after its first and last value.
    pub unit: &'static str,
    /// Digits after the point.
    pub digits: usize,
    /// `x` and `y`.
    pub points: Vec<(f64, f64)>,
}

/// Text takes the reader's colour; bars have one that stands out on both grounds.
const STYLE: &str = "<style>\
    text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:16px}.panel{font-weight:600}\
    .ours{fill:#2f81f7}.other{fill:#8b949e}.mark{stroke:#d29922;stroke-width:2;stroke-dasharray:5 4}\
    .line{fill:none;stroke:#2f81f7;stroke-width:2}.axis{stroke:#8b949e}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>";

impl Chart {
    /// The picture.
    pub fn svg(&self) -> String {
        let (mut body, mut y) = (String::new(), 32.0);
        text(&mut body, 16.0, y, "title", &self.title);
        for panel in &self.panels {
            y += 34.0;
            y = match panel {
                Panel::Bars(bars) => bars.draw(&mut body, y),
                Panel::Line(line) => line.draw(&mut body, y),
            };
        }
        let height = y + 16.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\" aria-label=\"{}\">\n{STYLE}\n{body}</svg>\n",
            escaped(&self.title)
        )
    }
}

impl Bars {
    fn draw(&self, body: &mut String, top: f64) -> f64 {
        text(body, 16.0, top, "panel", &self.title);
        let most = self.bars.iter().map(|bar| bar.value).chain(self.mark).fold(f64::MIN_POSITIVE, f64::max);
        let scale = (WIDTH - LEFT - 90.0) / most;
        let mut y = top + 12.0;
        let first = y;
        for bar in &self.bars {
            let (class, length) = (if bar.is_ours { "ours" } else { "other" }, (bar.value * scale).max(1.0));
            text(body, 24.0, y + 14.0, "", &bar.name);
            writeln!(
                body,
                "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\"/>"
            )
            .expect("a string grows");
            text(body, LEFT + length + 6.0, y + 14.0, "", &format!("{:.*}", self.digits, bar.value));
            y += BAR + GAP;
        }
        if let Some(mark) = self.mark {
            let (x, last) = (LEFT + mark * scale, y - GAP);
            writeln!(body, "<line class=\"mark\" x1=\"{x:.1}\" y1=\"{first:.1}\" x2=\"{x:.1}\" y2=\"{last:.1}\"/>")
                .expect("a string grows");
        }
        y
    }
}

impl Line {
    fn draw(&self, body: &mut String, top: f64) -> f64 {
        text(body, 16.0, top, "panel", self.title);
        let (left, right, bottom) = (60.0, WIDTH - 110.0, top + LINE_HEIGHT);
        let x_max = self.points.iter().map(|point| point.0).fold(f64::MIN_POSITIVE, f64::max);
        let y_max = self.points.iter().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max) * 1.15;
        let at = |(x, y): (f64, f64)| (left + x / x_max * (right - left), bottom - y / y_max * (LINE_HEIGHT - 24.0));
        let path: Vec<String> =
            self.points.iter().map(|point| at(*point)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        writeln!(
            body,
            "<line class=\"axis\" x1=\"{left}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\"/>\n\
             <polyline class=\"line\" points=\"{}\"/>",
            path.join(" ")
        )
        .expect("a string grows");
        for point in &self.points {
            let (x, y) = at(*point);
            writeln!(body, "<circle class=\"ours\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>").expect("a string grows");
            text(body, x - 12.0, y - 9.0, "", &format!("{:.*}", self.digits, point.1));
            text(body, x - 10.0, bottom + 16.0, "", &format!("{:.0}", point.0));
        }
        text(body, right + 24.0, bottom + 16.0, "", "clients");
        text(body, right + 24.0, bottom - LINE_HEIGHT / 2.0, "", self.unit);
        bottom + 20.0
    }
}

fn text(body: &mut String, x: f64, y: f64, class: &str, words: &str) {
    writeln!(body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(words))
        .expect("a string grows");
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
