//! The command: what to simulate, against what, and what to write.

use crate::chart::svg;
use crate::policy::Policy;
use crate::report::{Report, table};
use crate::scenario::{Failures, Scenario};
use crate::trace::{BadTrace, Trace};
use crate::world::{Violation, simulate};
use catchment_planner::Class;
use std::io;
use std::path::PathBuf;

/// Simulate a fleet under the real planner and coordinator, beside what is used without them.
#[derive(Debug, Clone, clap::Args)]
pub struct Simulate {
    /// A scenario as JSON (`--print-scenario` shows one); otherwise a small cluster with three jobs
    #[arg(long)]
    scenario: Option<PathBuf>,
    /// Clients of a round, for one job on a large fleet instead
    #[arg(long, conflicts_with = "scenario")]
    clients: Option<u64>,
    /// Nodes of the large fleet
    #[arg(long, requires = "clients", default_value_t = 1000)]
    nodes: u64,
    /// So many updates of 233 MB at once on five nodes instead
    #[arg(long, conflicts_with_all = ["scenario", "clients"])]
    at_once: Option<u64>,
    /// All randomness follows from it
    #[arg(long)]
    seed: Option<u64>,
    /// How clients arrive: steady, diurnal, bursty, heavy-tailed, or a CSV file of seconds
    #[arg(long)]
    trace: Option<String>,
    /// Rounds of every job
    #[arg(long)]
    rounds: Option<u64>,
    /// Class of every job's function: additive, coordinate-wise, two-phase or whole
    #[arg(long)]
    class: Option<Class>,
    /// A node dies this often, on average, in seconds
    #[arg(long)]
    death_every_s: Option<f64>,
    /// Only these policies, by name; the first is what the others are held against
    #[arg(long = "policy")]
    policies: Vec<String>,
    /// Write JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Draw the comparison here
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Print the scenario and stop
    #[arg(long)]
    print_scenario: bool,
}

/// Why nothing was simulated, or what went wrong in it.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// A file could not be read or written.
    #[error("{verb} {}: {error}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The scenario does not parse.
    #[error("read scenario: {0}")]
    Scenario(#[from] serde_json::Error),
    /// The trace does not parse.
    #[error("read trace: {0}")]
    Trace(#[from] BadTrace),
    /// There is no such policy.
    #[error("no policy is called {0:?}; there are {1}")]
    Policy(String, String),
    /// The scenario's numbers make no sense.
    #[error("{0}")]
    Numbers(&'static str),
    /// What must never happen did.
    #[error("{0}")]
    Violation(#[from] Violation),
}

impl Simulate {
    /// Simulates, and gives the text to print.
    ///
    /// # Errors
    /// Files, numbers, or an invariant that did not hold; that one names the seed.
    pub fn run(&self) -> Result<String, SimulateError> {
        let scenario = self.scenario()?;
        if self.print_scenario {
            return Ok(serde_json::to_string_pretty(&scenario)?);
        }
        let mut reports: Vec<Report> = Vec::new();
        for policy in self.policies()? {
            reports.push(simulate(&scenario, &policy)?);
        }
        if let Some(path) = &self.svg {
            let title = title(&scenario);
            let wrong = |error| SimulateError::File { verb: "write", path: path.clone(), error };
            std::fs::write(path, svg(&title, &reports)).map_err(wrong)?;
        }
        if self.json { Ok(serde_json::to_string_pretty(&reports)?) } else { Ok(table(&reports)) }
    }

    fn policies(&self) -> Result<Vec<Policy>, SimulateError> {
        let all = Policy::all();
        if self.policies.is_empty() {
            return Ok(all);
        }
        let find = |name: &String| {
            let names = || all.iter().map(|policy| policy.name.clone()).collect::<Vec<_>>().join("; ");
            let found = all.iter().find(|policy| policy.name == *name);
            found.cloned().ok_or_else(|| SimulateError::Policy(name.clone(), names()))
        };
        self.policies.iter().map(find).collect()
    }

    fn scenario(&self) -> Result<Scenario, SimulateError> {
        let seed = self.seed.unwrap_or(1);
        let mut scenario = match (&self.scenario, self.clients, self.at_once) {
            (Some(path), _, _) => serde_json::from_slice(&read(path)?)?,
            (None, Some(clients), _) => Scenario::large(seed, clients, self.nodes),
            (None, None, Some(updates)) => Scenario::at_once(seed, updates),
            (None, None, None) => Scenario::small(seed),
        };
        scenario.seed = self.seed.unwrap_or(scenario.seed);
        let trace = self.trace.as_deref().map(trace).transpose()?;
        for workload in &mut scenario.workloads {
            workload.trace = trace.clone().unwrap_or_else(|| workload.trace.clone());
            workload.rounds = self.rounds.unwrap_or(workload.rounds);
            workload.class = self.class.unwrap_or(workload.class);
        }
        if let Some(death_every_s) = self.death_every_s {
            scenario.failures = Failures { death_every_s, down_s: 60.0, ..scenario.failures };
        }
        check(&scenario)?;
        Ok(scenario)
    }
}

/// The numbers that would make a simulation without meaning, or without end.
fn check(scenario: &Scenario) -> Result<(), SimulateError> {
    let good = |number: f64| number.is_finite() && number > 0.0;
    let kinds = scenario.nodes.iter().map(|kind| kind.count).sum::<u64>();
    let holds = [
        ((1..=100_000).contains(&kinds), "a fleet has 1 to 100000 nodes"),
        (
            scenario.nodes.iter().all(|kind| kind.cores > 0 && good(kind.link_bytes_per_s)),
            "a node has cores and a link",
        ),
        (!scenario.workloads.is_empty(), "there is a workload"),
        (
            scenario.workloads.iter().all(|load| {
                let counts = load.jobs > 0 && load.rounds > 0 && (1..=100_000_000).contains(&load.goal);
                counts && load.update_bytes > 0 && good(load.per_s) && (1.0..=100.0).contains(&load.over_provision)
            }),
            "a workload has jobs, rounds, a goal, bytes, a rate, and an over-provision from 1 to 100",
        ),
        (
            scenario.workloads.iter().all(|load| load.deadline_s >= 0.1 && load.deadline_s <= 365.0 * 86_400.0),
            "a deadline is from 0.1 s to a year",
        ),
    ];
    holds.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, what)| Err(SimulateError::Numbers(what)))
}

fn trace(text: &str) -> Result<Trace, SimulateError> {
    Ok(match text {
        "steady" => Trace::Steady,
        "diurnal" => Trace::Diurnal { day_s: 600.0 },
        "bursty" => Trace::Bursty { burst: 20.0 },
        "heavy-tailed" => Trace::HeavyTailed { exponent: 1.5 },
        file => Trace::from_csv(&String::from_utf8_lossy(&read(&PathBuf::from(file))?))?,
    })
}

fn read(path: &PathBuf) -> Result<Vec<u8>, SimulateError> {
    std::fs::read(path).map_err(|error| SimulateError::File { verb: "read", path: path.clone(), error })
}

fn title(scenario: &Scenario) -> String {
    let nodes: u64 = scenario.nodes.iter().map(|kind| kind.count).sum();
    let jobs: u32 = scenario.workloads.iter().map(|load| load.jobs).sum();
    let goal = scenario.workloads.iter().map(|load| load.goal).max().unwrap_or(0);
    format!("Simulated: {jobs} jobs of up to {goal} updates a round on {nodes} nodes")
}
