//! Shows the routing map while work goes on, and moves a lane from one runner to the other in the middle of a round.

use super::http::Server;
use anyhow::Result;
use indicatif::ProgressBar;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How often the map is shown, and a lane moved.
const EVERY: Duration = Duration::from_millis(700);

/// Looks at the runners of a demo.
pub struct Routing {
    last: Instant,
    /// Moves so far.
    pub moves: u64,
}

impl Routing {
    pub fn new() -> Self {
        Self { last: Instant::now(), moves: 0 }
    }

    /// Shows the map, if it is time; in a round that takes updates, moves its first lane.
    pub fn look(&mut self, server: &Server, round: &Value, bar: &ProgressBar) -> Result<()> {
        if self.last.elapsed() < EVERY {
            return Ok(());
        }
        let view = server.json("/v1/runners")?;
        let Some(route) = view["routes"].as_array().and_then(|routes| routes.first()) else { return Ok(()) };
        self.last = Instant::now();
        let mut lines = table(&view);
        let other = view["runners"].as_array().into_iter().flatten().find(|runner| runner["runner"] != route["runner"]);
        if let (Some(other), "open") = (other, round["state"].as_str().unwrap_or_default()) {
            let (name, to) = (route["route"].as_str().unwrap_or_default(), &other["runner"]);
            // Between looking and moving the job may have come to rest, and its routes be gone.
            if server.send("PUT", &format!("/v1/runners/{to}/routes/{name}"), b"").is_ok() {
                self.moves += 1;
                lines.push(format!(
                    "  moved lane {} to runner {to} in round {}, with {} of {} updates in",
                    route["lane"], round["round"], round["received"], round["goal"]
                ));
            }
        }
        for line in lines {
            if bar.is_hidden() { println!("{line}") } else { bar.println(line) }
        }
        Ok(())
    }
}

fn table(view: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let lacks = view["lacks"].as_str().map_or_else(String::new, |lacks| format!(" ({lacks})"));
    let mut lines = vec![
        String::new(),
        format!("routing map, descriptors by {}{lacks}", text(&view["link"])),
        "  route             lane  runner   kernel   socket  slow  payload".to_owned(),
    ];
    for route in view["routes"].as_array().into_iter().flatten() {
        lines.push(format!(
            "  {}  {:>4}  {:>6} {:>8} {:>8} {:>5}  {:.2} MB",
            text(&route["route"]),
            text(&route["lane"]),
            text(&route["runner"]),
            text(&route["kernel"]),
            text(&route["socket"]),
            text(&route["slow"]),
            route["payload_bytes"].as_f64().unwrap_or_default() / 1e6,
        ));
    }
    for runner in view["runners"].as_array().into_iter().flatten() {
        let ms = |name: &str| runner[name].as_u64().map_or_else(|| "–".to_owned(), |ms| format!("{ms} ms"));
        lines.push(format!(
            "  runner {}, process {}: {} on a CPU, {} waiting for one",
            runner["runner"],
            runner["pid"],
            ms("on_cpu_ms"),
            ms("queued_ms")
        ));
    }
    lines
}
