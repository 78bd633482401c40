//! The live view on a terminal: what happened scrolls by above, what is happening stays below.

use super::rounds::Published;
use super::view::{View, end_line, model_line, skipped_line};
use crate::output;
use crate::system::SystemClock;
use crate::text;
use anyhow::{Context as _, Result};
use catchment_client::JobInfo;
use catchment_types::{Clock as _, JobState, NodesView, RoundNodeView, RoundState, RoundView, printable};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A few lines that are drawn again as the job goes on. They vanish when this is dropped.
pub struct Live {
    screen: MultiProgress,
    state: ProgressBar,
    rounds: ProgressBar,
    updates: ProgressBar,
    cluster: ProgressBar,
    nodes: ProgressBar,
}

impl Live {
    /// On standard output, which is a terminal.
    pub fn new() -> Self {
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let line = |template: &str| {
            let style = ProgressStyle::with_template(template).expect("templates are fixed").progress_chars("=> ");
            screen.add(ProgressBar::no_length().with_style(style))
        };
        let state = line("{wide_msg}");
        let rounds = line("rounds  [{bar:40.cyan}] {pos}/{len}");
        let updates = line("updates [{bar:40.green}] {pos}/{len} received, {msg} folded");
        let cluster = line("{msg}");
        let nodes = line("{msg}");
        Self { screen, state, rounds, updates, cluster, nodes }
    }

    fn line(&self, line: &str) -> Result<()> {
        self.screen.println(printable(line)).context("print progress")
    }
}

/// What clients and nodes chose of it does nothing to the terminal.
fn shown(text: &str) -> String {
    printable(text).into_owned()
}

impl View for Live {
    fn round(&mut self, job: &JobInfo, _changed: bool) -> Result<()> {
        // At every look, changed or not: the time to the deadline passes.
        self.state.set_message(shown(&state_line(job, SystemClock.now_ms())));
        self.rounds.set_length(text::spec_count(job, "rounds").unwrap_or(0));
        self.rounds.set_position(rounds_ended(job));
        self.updates.set_length(job.round.goal);
        self.updates.set_position(job.round.received);
        self.updates.set_message(job.round.folded.to_string());
        self.nodes.set_message(shown(&tree(&job.round)));
        Ok(())
    }

    fn cluster(&mut self, nodes: &NodesView) {
        self.cluster.set_message(shown(&cluster_line(nodes)));
    }

    fn shows_cluster(&self) -> bool {
        true
    }

    fn model(&mut self, model: &Published) -> Result<()> {
        self.line(&model_line(model))
    }

    fn skipped(&mut self, count: u64, why: Option<&str>) -> Result<()> {
        self.line(&skipped_line(count, why))
    }

    fn end(&mut self, job: &JobInfo) -> Result<()> {
        let lines = [&self.state, &self.rounds, &self.updates, &self.cluster, &self.nodes];
        lines.into_iter().for_each(ProgressBar::finish_and_clear);
        output::write(&end_line(job))
    }
}

/// `digits: running, round 3 aggregating, from model 2, 9 m 12 s left`.
fn state_line(job: &JobInfo, now_ms: u64) -> String {
    let mut line = format!("{}: {}", text::spec_text(job, "name"), text::word(job.state));
    if let Some(reason) = &job.reason {
        line += &format!(" ({reason})");
    }
    if job.round.round > 0 {
        line += &format!(", round {} {}", job.round.round, text::word(job.round.state));
        if let Some(version) = job.round.model_version {
            line += &format!(", from model {version}");
        }
    }
    let is_open = job.state == JobState::Running && job.round.state == RoundState::Open;
    let deadline = job.round.deadline_at.as_deref().filter(|_| is_open).and_then(text::time_ms);
    if let Some(left_ms) = deadline.and_then(|at| at.checked_sub(now_ms)) {
        line += &format!(", {} left", text::duration(left_ms));
    }
    line
}

/// `nodes   3, of which 1 is draining; 4 wanted`. Nothing for a node that is alone and enough.
fn cluster_line(nodes: &NodesView) -> String {
    if nodes.items.len().max(nodes.wanted.unwrap_or(0) as usize) < 2 {
        return String::new();
    }
    let draining = match nodes.items.iter().filter(|node| node.draining).count() {
        0 => String::new(),
        1 => ", of which 1 is draining".to_owned(),
        count => format!(", of which {count} are draining"),
    };
    let wanted = nodes.wanted.map(|count| format!("; {count} wanted")).unwrap_or_default();
    format!("nodes   {}{draining}{wanted}", nodes.items.len())
}

/// The round as the tree that it is put together in: the top, and under each node those whose partials it merges. Nothing
/// for one node alone.
fn tree(round: &RoundView) -> String {
    let Some((top, others)) = round.nodes.split_first().filter(|(_, others)| !others.is_empty()) else {
        return String::new();
    };
    let is_in = |node: &str| others.iter().any(|other| other.node == node);
    // What goes nowhere, or to nobody who is here, goes to the top.
    let (first, below): (Vec<_>, Vec<_>) =
        others.iter().partition(|node| node.into.as_deref().is_none_or(|into| !is_in(into)));
    let mut lines = vec![format!("top    {}", node_line(top))];
    branches(&mut lines, &first, &below, " ");
    lines.join("\n")
}

/// A line for each of `nodes`, and under it those of `below` that it merges.
fn branches(lines: &mut Vec<String>, nodes: &[&RoundNodeView], below: &[&RoundNodeView], indent: &str) {
    for (i, node) in nodes.iter().enumerate() {
        let (branch, further) = if i + 1 == nodes.len() { ("└─", "   ") } else { ("├─", "│  ") };
        lines.push(format!("{indent}{branch} {}", node_line(node)));
        let merged: Vec<_> = below.iter().copied().filter(|other| other.into.as_ref() == Some(&node.node)).collect();
        branches(lines, &merged, below, &format!("{indent}{further}"));
    }
}

/// `node-1: 3 of 4 received, 1 folded, 4.5 MB`.
fn node_line(node: &RoundNodeView) -> String {
    let name = node.name.as_deref().unwrap_or(&node.node);
    let planned = if node.planned > 0 { format!(" of {}", node.planned) } else { String::new() };
    format!("{name}: {}{planned} received, {} folded, {:.1} MB", node.received, node.folded, node.bytes as f64 / 1e6)
}

fn rounds_ended(job: &JobInfo) -> u64 {
    match job.round.state {
        RoundState::Committed | RoundState::Skipped => job.round.round,
        RoundState::None | RoundState::Open | RoundState::Aggregating | RoundState::Other => {
            job.round.round.saturating_sub(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::example;
    use catchment_types::NodeView;

    #[test]
    fn a_round_on_many_nodes_is_shown_as_a_tree() {
        let mut job = example();
        assert_eq!(tree(&job.round), "");
        let node = |name: &str, received: u64, into: Option<u64>| RoundNodeView {
            node: format!("{received:016x}"),
            name: (!name.is_empty()).then(|| name.to_owned()),
            top: false,
            into: into.map(|into| format!("{into:016x}")),
            planned: received + 1,
            received,
            folded: 1,
            bytes: received * 1_500_000,
        };
        let top = Some(9);
        job.round.nodes = vec![node("a", 9, None), node("b", 8, top), node("c", 3, Some(8)), node("", 2, Some(3))];
        job.round.nodes.extend([node("e", 1, Some(8)), node("f", 0, None)]);
        let expected = "top    a: 9 of 10 received, 1 folded, 13.5 MB
 ├─ b: 8 of 9 received, 1 folded, 12.0 MB
 │  ├─ c: 3 of 4 received, 1 folded, 4.5 MB
 │  │  └─ 0000000000000002: 2 of 3 received, 1 folded, 3.0 MB
 │  └─ e: 1 of 2 received, 1 folded, 1.5 MB
 └─ f: 0 of 1 received, 1 folded, 0.0 MB";
        assert_eq!(tree(&job.round), expected);
    }

    #[test]
    fn a_cluster_is_counted() {
        let node = |draining| NodeView {
            node: "00".repeat(8),
            name: "a".to_owned(),
            url: "http://a".to_owned(),
            zone: String::new(),
            cores: 1,
            memory_bytes: 1,
            memory_free_bytes: 1,
            draining,
        };
        let line = |draining: &[bool], wanted| {
            let items = draining.iter().copied().map(node).collect();
            cluster_line(&NodesView { items, wanted, cursor: None })
        };
        assert_eq!(line(&[false], Some(1)), "");
        assert_eq!(line(&[false], Some(2)), "nodes   1; 2 wanted");
        assert_eq!(line(&[false, true, false], Some(4)), "nodes   3, of which 1 is draining; 4 wanted");
        assert_eq!(line(&[true, true], None), "nodes   2, of which 2 are draining");
    }

    #[test]
    fn the_state_line_counts_down_while_the_round_is_open() {
        let mut job = example();
        let now_ms = text::time_ms("2026-01-01T00:00:48.000Z").unwrap();
        assert_eq!(state_line(&job, now_ms), "digits: running, round 3 open, from model 2, 9 m 12 s left");
        assert_eq!(rounds_ended(&job), 2);
        job.round.state = RoundState::Committed;
        job.state = JobState::Paused;
        assert_eq!(state_line(&job, now_ms), "digits: paused, round 3 committed, from model 2");
        assert_eq!(rounds_ended(&job), 3);
    }
}
