//! The measurements, the same for every way.

use super::way::{self, Out, Side, THERE, Way, descriptor};
use catchment_proxy::Inbox;
use catchment_types::Descriptor;
use std::io;
use std::time::{Duration, Instant};

/// What one slice of a measurement does.
const TRIPS: usize = 2_000;
const SENT: usize = 32_000;
const WORKED: usize = 320;
/// After how many descriptors a runner says so.
const CREDIT: usize = 32;
const WORK: Duration = Duration::from_micros(200);

/// What one way achieved: times in microseconds, rates in descriptors a second.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the table's rows say it")]
pub struct Figures {
    pub trip_us: f64,
    pub trip_99_us: f64,
    pub trip_cpu_us: f64,
    pub rate: f64,
    pub rate_cpu_us: f64,
    pub batch_rate: f64,
    pub batch_cpu_us: f64,
    pub work_rate: f64,
}

/// What a runner does with descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Answers each.
    Echo,
    /// Counts them.
    Count,
    /// Counts them, with some work for each.
    Work,
}

impl Mode {
    /// As an argument.
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Count => "count",
            Self::Work => "work",
        }
    }
}

/// A way with its runners, which stay between slices.
pub struct Station {
    echo: Side,
    count: Side,
    work: Side,
}

impl Station {
    /// Starts them.
    pub fn new(way: Way) -> io::Result<Self> {
        let side = |mode| way::node(way, mode);
        Ok(Self { echo: side(Mode::Echo)?, count: side(Mode::Count)?, work: side(Mode::Work)? })
    }

    /// The runners' processes.
    pub fn runners(&self) -> impl Iterator<Item = u32> {
        [&self.echo, &self.count, &self.work].into_iter().flat_map(|side| side.pids())
    }

    /// Measures one slice of everything.
    pub fn measure(&mut self) -> io::Result<Figures> {
        let mut figures = Figures::default();
        (figures.trip_us, figures.trip_99_us, figures.trip_cpu_us) = trips(&mut self.echo)?;
        (figures.rate, figures.rate_cpu_us) = rate(&mut self.count, SENT, 1)?;
        (figures.batch_rate, figures.batch_cpu_us) = rate(&mut self.count, SENT, 16)?;
        (figures.work_rate, _) = rate(&mut self.work, WORKED, 1)?;
        Ok(figures)
    }
}

fn trips(side: &mut Side) -> io::Result<(f64, f64, f64)> {
    let (mut into, mut took) = (Vec::new(), Vec::with_capacity(TRIPS));
    let before = cpu(side);
    for _ in 0..TRIPS {
        let start = Instant::now();
        side.out.send(&[descriptor(THERE, 1)])?;
        into.clear();
        side.inbox.recv(&mut into)?;
        took.push(start.elapsed());
        side.out.credit(1);
    }
    let cpu = cpu(side) - before;
    took.sort();
    let at = |share: f64| took[(took.len() as f64 * share) as usize].as_secs_f64() * 1e6;
    Ok((at(0.5), at(0.99), cpu.as_secs_f64() * 1e6 / TRIPS as f64))
}

/// Sends as fast as credits come back; gives descriptors a second, and the CPU time of one.
fn rate(side: &mut Side, total: usize, batch: usize) -> io::Result<(f64, f64)> {
    let batch = vec![descriptor(THERE, 1); batch];
    let (start, before) = (Instant::now(), cpu(side));
    let credits = side.out.another();
    let Side { out, inbox, .. } = side;
    std::thread::scope(|scope| {
        let returned = scope.spawn(move || handled(inbox, &credits, total));
        for _ in 0..total / batch.len() {
            out.send(&batch)?;
        }
        returned.join().expect("the counting thread")
    })?;
    let took = start.elapsed().as_secs_f64();
    Ok((total as f64 / took, (cpu(side) - before).as_secs_f64() * 1e6 / total as f64))
}

/// Takes back credits until the runner has handled so many.
fn handled(inbox: &mut Inbox, credits: &Out, total: usize) -> io::Result<()> {
    let (mut into, mut handled) = (Vec::new(), 0);
    while handled < total {
        into.clear();
        if inbox.recv(&mut into)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for descriptor in &into {
            handled += descriptor.length as usize;
            credits.credit(descriptor.length as u32);
        }
    }
    Ok(())
}

/// Is a runner.
pub fn runner(mode: Mode) -> io::Result<()> {
    let (mut out, mut inbox) = way::runner()?;
    let mut into: Vec<Descriptor> = Vec::new();
    let mut handled = 0;
    loop {
        into.clear();
        if inbox.recv(&mut into)? == 0 {
            return Ok(());
        }
        if mode == Mode::Echo {
            for descriptor in &into {
                out.send(std::slice::from_ref(descriptor))?;
                out.credit(1);
            }
            continue;
        }
        for _ in &into {
            let start = Instant::now();
            while mode == Mode::Work && start.elapsed() < WORK {
                std::hint::spin_loop();
            }
            handled += 1;
            if handled == CREDIT {
                out.send(&[descriptor(THERE, CREDIT as u64)])?;
                out.credit(1);
                handled = 0;
            }
        }
    }
}

/// CPU time of this process and the others of a side, as the scheduler counted it.
fn cpu(side: &Side) -> Duration {
    let pids = side.pids().chain([std::process::id()]);
    let tasks = pids.filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten().flatten();
    let of = |text: String| text.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    let sums = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok().and_then(of));
    Duration::from_nanos(sums.sum())
}
