//! A line chart as SVG.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 44.0;

/// Accuracy of each model version, with levels to compare it to.
pub fn accuracy(points: &[(u64, f64)], levels: &[(&str, f64)]) -> String {
    let last = points.last().map_or(1, |(version, _)| (*version).max(1)) as f64;
    let x = |version: u64| LEFT + (WIDTH - LEFT - RIGHT) * version as f64 / last;
    let y = |accuracy: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * accuracy.clamp(0.0, 1.0);
    let (plot_right, plot_bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">Accuracy on held-out digits, by round</text>\n"
    );
    for tenth in (0..=10).step_by(2) {
        let (level, at) = (f64::from(tenth) / 10.0, y(f64::from(tenth) / 10.0));
        writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{plot_right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
            <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{level:.1}</text>",
            LEFT - 8.0,
            at + 4.0
        )
        .expect("a string grows");
    }
    let step = (points.len() / 10).max(1);
    for (version, _) in points.iter().step_by(step) {
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{version}</text>",
            x(*version),
            plot_bottom + 18.0
        )
        .expect("a string grows");
    }
    let mut labels: Vec<(f64, &str, &str)> = Vec::new();
    for ((name, level), colour) in levels.iter().zip(["#c70", "#888", "#393"]) {
        let at = y(*level);
        writeln!(svg, "<line x1=\"{LEFT}\" x2=\"{plot_right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{colour}\" stroke-dasharray=\"5 4\"/>")
            .expect("a string grows");
        labels.push((at, name, colour));
    }
    let line: Vec<String> =
        points.iter().map(|(version, accuracy)| format!("{:.1},{:.1}", x(*version), y(*accuracy))).collect();
    writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"#15c\" stroke-width=\"2\"/>", line.join(" "))
        .expect("a string grows");
    for (version, accuracy) in points {
        writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"#15c\"/>", x(*version), y(*accuracy))
            .expect("a string grows");
    }
    labels.push((points.last().map_or(TOP, |(_, accuracy)| y(*accuracy)), "federated", "#15c"));
    for (at, name, colour) in apart(labels) {
        writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>", plot_right + 8.0, at + 4.0)
            .expect("a string grows");
    }
    svg.push_str("</svg>\n");
    svg
}

/// Moves labels down until none lies on another.
fn apart<'a>(mut labels: Vec<(f64, &'a str, &'a str)>) -> Vec<(f64, &'a str, &'a str)> {
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    for i in 1..labels.len() {
        labels[i].0 = labels[i].0.max(labels[i - 1].0 + 15.0);
    }
    labels
}
