//! The comparison as a picture in SVG: bars from zero, every number beside its mark, readable on light and dark.

use crate::report::Report;
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 190.0;
const BAR: f64 = 16.0;
const GAP: f64 = 6.0;

/// Text takes the reader's colour; bars have one that stands out on both grounds.
const STYLE: &str = "<style>\
    text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:16px}.panel{font-weight:600}\
    .ours{fill:#2f81f7}.other{fill:#8b949e}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>";

/// What is drawn of a report.
type Value = fn(&Report) -> f64;

const PANELS: [(&str, usize, Value); 5] = [
    ("Model after the round's last update, mean, seconds", 3, |report| report.tail_s.mean),
    ("Bytes between nodes, GB", 1, |report| report.between_nodes_bytes as f64 / 1e9),
    ("Node seconds", 0, |report| report.node_s),
    ("CPU seconds", 0, |report| report.cpu_s),
    ("Cold starts", 0, |report| report.cold_starts as f64),
];

/// The picture of these reports; the first is ours.
pub fn svg(title: &str, reports: &[Report]) -> String {
    let (mut body, mut y) = (String::new(), 32.0);
    text(&mut body, 16.0, y, "title", title);
    for (name, digits, value) in PANELS {
        y += 34.0;
        text(&mut body, 16.0, y, "panel", name);
        y += 12.0;
        let most = reports.iter().map(value).fold(f64::MIN_POSITIVE, f64::max);
        for (place, report) in reports.iter().enumerate() {
            let length = (value(report) / most * (WIDTH - LEFT - 90.0)).max(1.0);
            let class = if place == 0 { "ours" } else { "other" };
            text(&mut body, 24.0, y + 13.0, "", &report.policy);
            writeln!(
                body,
                "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\"/>"
            )
            .expect("a string grows");
            text(&mut body, LEFT + length + 6.0, y + 13.0, "", &format!("{:.digits$}", value(report)));
            y += BAR + GAP;
        }
    }
    let height = y + 12.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"{}\">\n{STYLE}\n{body}</svg>\n",
        escaped(title)
    )
}

fn text(body: &mut String, x: f64, y: f64, class: &str, words: &str) {
    writeln!(body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(words))
        .expect("a string grows");
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
