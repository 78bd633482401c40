//! What happens to the cluster of a demo while it trains: a node dies and comes back, a coordinator dies for good.

use super::http::Server;
use super::platform::Platform;
use anyhow::Result;
use indicatif::ProgressBar;
use serde_json::Value;

/// Trouble still to come, and what was shown.
pub struct Trouble {
    rounds: u64,
    node_died: bool,
    coordinator_died: bool,
    shown: u64,
}

impl Trouble {
    pub fn new(rounds: u64) -> Self {
        Self { rounds, node_died: false, coordinator_died: false, shown: 0 }
    }

    /// Shows a round on its nodes now and then; after a third of the rounds a node dies, after two thirds a coordinator.
    pub fn look(&mut self, platform: &mut Platform, server: &Server, round: &Value, bar: &ProgressBar) -> Result<()> {
        let say = |line: String| if bar.is_hidden() { println!("{line}") } else { bar.println(line) };
        let number = round["round"].as_u64().unwrap_or_default();
        if number == 1 && self.shown == 0 {
            for node in server.json("/v1/nodes")?["items"].as_array().into_iter().flatten() {
                say(format!("  {} at {}", text(&node["name"]), text(&node["url"])));
            }
            self.shown = 1;
        }
        let nodes = round["nodes"].as_array().cloned().unwrap_or_default();
        if number >= self.shown + self.rounds / 4 && nodes.len() > 1 {
            let part = |node: &Value| {
                let top = if node["top"] == true { " (top)" } else { "" };
                format!("{}{top} {} received {} folded", text(&node["name"]), node["received"], node["folded"])
            };
            say(format!("  round {number}: {}", nodes.iter().map(part).collect::<Vec<_>>().join(", ")));
            self.shown = number;
        }
        if !self.node_died && number > self.rounds / 3 {
            self.node_died = true;
            let name = platform.kill_a_node()?;
            say(format!("  killed {name} in round {number} (kill -9) and started it again"));
        }
        if !self.coordinator_died && number > 2 * self.rounds / 3 {
            self.coordinator_died = true;
            if let Some(name) = platform.kill_a_coordinator() {
                say(format!("  killed {name} in round {number}; the other one goes on"));
            }
        }
        Ok(())
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
