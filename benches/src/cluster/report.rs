//! The tables and the chart.

use super::{Arguments, Outcome, Usage, WAYS, Way};
use crate::chart::{Bar, Bars, Chart, Panel};
use crate::observe::Series;
use std::fmt::Write;

/// One load in one way.
pub struct Case {
    /// The load.
    pub load: &'static str,
    /// The way.
    pub way: Way,
    /// Each time that it was measured.
    pub runs: Vec<(Outcome, Usage)>,
}

/// What it costs to be there.
pub struct Idle {
    /// How long it was watched.
    pub seconds: f64,
    /// What it used meanwhile.
    pub used: Usage,
    /// Memory of all nodes and coordinators at the end.
    pub memory_bytes: u64,
}

/// What was measured.
pub struct Report {
    /// What was asked for.
    pub arguments: Arguments,
    /// Bytes of an update.
    pub bytes: u64,
    /// Load by load, in each of the ways.
    pub cases: Vec<Case>,
    /// What it costs to be there.
    pub idle: Idle,
}

/// A figure of one run, for a ratio to another way's.
type Figure = fn(&(Outcome, Usage)) -> f64;

/// What ways are compared in.
const COMPARED: [(&str, Figure); 5] = [
    ("model after last update", |(outcome, _)| mean(&outcome.tails_s)),
    ("after first", |(outcome, _)| mean(&outcome.wholes_s)),
    ("server CPU", |(_, used)| used.cpu_s),
    ("server and NATS CPU", |(_, used)| used.cpu_s + used.nats_cpu_s),
    ("bytes out of nodes", |(_, used)| used.out_bytes),
];

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// `mean / median / 99th percentile`, in milliseconds.
fn spread_ms(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.map(|s| s * 1e3).collect();
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values[((values.len() as f64 * part).ceil() as usize).clamp(1, values.len()) - 1];
    format!("{:.0} / {:.0} / {:.0}", mean(&values), at(0.5), at(0.99))
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Placed => "where they are told",
            Self::Balanced => "least connections",
            Self::Fresh => "where they are told, a new job each round",
        }
    }

    fn short(self) -> &'static str {
        match self {
            Self::Placed => "as told",
            Self::Balanced => "balanced",
            Self::Fresh => "new jobs",
        }
    }
}

impl Case {
    fn series(&self, figure: impl Fn(&(Outcome, Usage)) -> f64) -> Series {
        self.runs.iter().map(figure).collect()
    }

    fn row(&self) -> String {
        let all =
            |of: fn(&Outcome) -> &Vec<f64>| self.runs.iter().flat_map(move |(outcome, _)| of(outcome).iter().copied());
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.1} | {} |",
            self.load,
            self.way.name(),
            spread_ms(all(|outcome| &outcome.tails_s)),
            spread_ms(all(|outcome| &outcome.wholes_s)),
            self.series(|(_, used)| used.cpu_s).show(2),
            self.series(|(_, used)| used.nats_cpu_s).show(2),
            self.series(|(outcome, _)| outcome.counts.partial_bytes / 1e6).show(0),
            self.series(|(_, used)| used.out_bytes / 1e6).show(0),
            mean(&all(|outcome| &outcome.nodes).collect::<Vec<_>>()),
            self.series(|(outcome, _)| outcome.counts.cold_starts).show(0),
        )
    }
}

impl Report {
    /// Markdown tables.
    pub fn table(&self) -> String {
        let Arguments { jobs, rounds, clients, repeats, seconds, .. } = self.arguments;
        let mut table = format!(
            "Three nodes on hosts of their own, {jobs} jobs at once, {rounds} rounds of {clients} clients × {:.1} MB each in \
             {seconds:.0} s, {} updates a run; times of the rounds of {repeats} runs together, else medians (least–most) of runs\n\n\
             | updates come | clients go | model after last update, ms: mean / p50 / p99 | after first, ms: mean / p50 / p99 \
             | CPU s, nodes and coordinator | CPU s, NATS | partials between nodes, MB | all bytes out of nodes, MB \
             | nodes a round | instances made |\n|---|---|---|---|---|---|---|---|---|---|\n",
            self.bytes as f64 / 1e6,
            jobs * rounds * clients,
        );
        let mut line = |text: String| writeln!(table, "{text}").expect("a string grows");
        self.cases.iter().for_each(|case| line(case.row()));
        line(format!(
            "\nTimes what it is where clients go where they are told, from runs next to each other, medians (least–most)\n\n\
             | updates come | clients go | {} |\n|---|---|{}",
            COMPARED.map(|(what, _)| what).join(" | "),
            "---|".repeat(COMPARED.len()),
        ));
        for of_load in self.cases.chunks(WAYS.len()) {
            for case in &of_load[1..] {
                let ratio = |(_, figure)| case.series(figure).over(&of_load[0].series(figure)).show(2);
                line(format!("| {} | {} | {} |", case.load, case.way.name(), COMPARED.map(ratio).join(" | ")));
            }
        }
        let Idle { seconds, used, memory_bytes } = &self.idle;
        line(format!(
            "\nThe same cluster with {jobs} open rounds and nobody who sends: {:.2}% of one core (nodes and coordinator) and \
             {:.2}% (NATS) over {seconds:.0} s, {:.1} kB/s out of nodes, {:.0} MB of memory (PSS).",
            100.0 * used.cpu_s / seconds,
            100.0 * used.nats_cpu_s / seconds,
            used.out_bytes / 1e3 / seconds,
            *memory_bytes as f64 / 1e6,
        ));
        table
    }

    /// Times and bytes as bars.
    pub fn chart(&self) -> Chart {
        let panel = |title: &str, digits, figure: Figure, scale: f64| {
            let bar = |case: &Case| Bar {
                name: format!("{}: {}", case.load, case.way.short()),
                value: case.series(figure).median() * scale,
                is_ours: case.way == Way::Placed,
            };
            Panel::Bars(Bars {
                title: title.to_owned(),
                digits,
                bars: self.cases.iter().map(bar).collect(),
                mark: None,
            })
        };
        Chart {
            title: "Three nodes on hosts of their own".to_owned(),
            panels: vec![
                panel("Model after the last update, ms, mean of a run's rounds", 0, COMPARED[0].1, 1e3),
                panel("CPU seconds of a run, nodes and coordinator", 2, COMPARED[2].1, 1.0),
                panel("Bytes out of nodes in a run, MB", 0, COMPARED[4].1, 1e-6),
            ],
        }
    }
}
