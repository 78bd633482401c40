//! When clients arrive.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// The pattern by which the clients of a round arrive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trace {
    /// Independently of each other, at one rate.
    Steady,
    /// At a rate that swings by four fifths over a day of this many seconds.
    Diurnal {
        /// A day.
        day_s: f64,
    },
    /// In bursts of about this many, ten times as fast as on average, with silence between.
    Bursty {
        /// Clients of a burst.
        burst: f64,
    },
    /// With gaps by Pareto's law with this exponent (above 1; 1.5 is heavy).
    HeavyTailed {
        /// The exponent.
        exponent: f64,
    },
    /// At these seconds after the round has opened, in order; beyond their end they begin anew.
    Recorded(
        /// Seconds.
        Vec<f64>,
    ),
}

/// A trace file that does not parse.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct BadTrace {
    /// From 1.
    pub line: usize,
    /// What was expected.
    pub what: &'static str,
}

/// Lines of a trace file at most.
const LINES_MAX: usize = 10_000_000;

impl Trace {
    /// Reads CSV: the first column is the second at which a client arrives; a first line that is no number is a heading.
    ///
    /// # Errors
    /// The first line that is no such number.
    pub fn from_csv(text: &str) -> Result<Self, BadTrace> {
        let mut times = Vec::new();
        for (line, row) in (1..).zip(text.lines()).filter(|(_, row)| !row.trim().is_empty()) {
            match row.split(',').next().unwrap_or_default().trim().parse::<f64>() {
                Ok(at) if at.is_finite() && at >= 0.0 => times.push(at),
                Err(_) if line == 1 => {}
                _ => return Err(BadTrace { line, what: "a number of seconds, 0 or more, in the first column" }),
            }
            if times.len() > LINES_MAX {
                return Err(BadTrace { line, what: "at most ten million arrivals" });
            }
        }
        if times.is_empty() {
            return Err(BadTrace { line: 1, what: "at least one arrival" });
        }
        times.sort_by(f64::total_cmp);
        Ok(Self::Recorded(times))
    }
}

/// The arrivals of one round, one after another.
pub(crate) struct Clients {
    trace: Trace,
    per_s: f64,
    rng: ChaCha8Rng,
    at_s: f64,
    count: usize,
    in_burst: f64,
}

impl Clients {
    pub fn new(trace: Trace, per_s: f64, seed: u64) -> Self {
        Self { trace, per_s, rng: ChaCha8Rng::seed_from_u64(seed), at_s: 0.0, count: 0, in_burst: 0.0 }
    }

    /// When the one before arrived.
    pub fn last_s(&self) -> f64 {
        self.at_s
    }

    /// Seconds since the round's begin, never less than before.
    pub fn next_s(&mut self) -> f64 {
        let per_s = self.per_s;
        self.at_s = match &self.trace {
            Trace::Steady => self.at_s + exponential(&mut self.rng, per_s),
            Trace::Diurnal { day_s } => {
                // Thinning (Lewis and Shedler, 1979): candidates at the highest rate, kept by the rate of their hour.
                let (mut at_s, most) = (self.at_s, 1.8 * per_s);
                loop {
                    at_s += exponential(&mut self.rng, most);
                    let now = per_s * (1.0 + 0.8 * (std::f64::consts::TAU * at_s / day_s.max(1.0)).sin());
                    if self.rng.random::<f64>() * most < now {
                        break at_s;
                    }
                }
            }
            Trace::Bursty { burst } => {
                let (burst, mut gap) = (burst.max(1.0), 0.0);
                if self.in_burst < 1.0 {
                    // What a burst was faster than average is the silence after it.
                    self.in_burst = 1.0 + exponential(&mut self.rng, 1.0 / burst);
                    gap = if self.count == 0 { 0.0 } else { exponential(&mut self.rng, per_s / (0.9 * burst)) };
                }
                self.in_burst -= 1.0;
                self.at_s + gap + exponential(&mut self.rng, 10.0 * per_s)
            }
            Trace::HeavyTailed { exponent } => {
                let exponent = exponent.max(1.05);
                let least = (exponent - 1.0) / exponent / per_s;
                let gap = least * (1.0 - self.rng.random::<f64>()).powf(-1.0 / exponent);
                // Cut, so that one gap is not the whole round.
                self.at_s + gap.min(1000.0 / per_s)
            }
            Trace::Recorded(times) => {
                let (turn, place) = (self.count / times.len(), self.count % times.len());
                turn as f64 * times[times.len() - 1] + times[place]
            }
        };
        self.count += 1;
        self.at_s
    }
}

fn exponential(rng: &mut ChaCha8Rng, per_s: f64) -> f64 {
    -(1.0 - rng.random::<f64>()).ln() / per_s
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(trace: Trace, count: usize) -> Vec<f64> {
        let mut clients = Clients::new(trace, 100.0, 1);
        (0..count).map(|_| clients.next_s()).collect()
    }

    #[test]
    fn every_pattern_has_its_rate_and_its_shape() {
        let kinds = [
            Trace::Steady,
            Trace::Diurnal { day_s: 20.0 },
            Trace::Bursty { burst: 50.0 },
            Trace::HeavyTailed { exponent: 1.5 },
        ];
        // Clients of the busiest second, and the longest gap in milliseconds: by these the patterns differ.
        let shapes = kinds.map(|trace| {
            let times = arrivals(trace.clone(), 40_000);
            assert!(times.is_sorted());
            let per_s = 40_000.0 / times.last().unwrap();
            assert!((70.0..140.0).contains(&per_s), "{trace:?} came at {per_s}");
            let mut seconds = vec![0u32; times.last().unwrap().ceil() as usize + 1];
            times.iter().for_each(|at| seconds[*at as usize] += 1);
            let gap_s = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
            (seconds.into_iter().max().unwrap(), (gap_s * 1000.0) as u64)
        });
        let [steady, diurnal, bursty, heavy] = shapes;
        assert!(steady.0 < 160 && steady.1 < 300, "{shapes:?}");
        assert!(diurnal.0 > 180 && diurnal.1 < 2000, "{shapes:?}");
        assert!(bursty.0 > 250 && bursty.1 > 1000, "{shapes:?}");
        assert!(heavy.1 > 1000, "{shapes:?}");
    }

    #[test]
    fn a_file_is_read_and_repeats() {
        let trace = Trace::from_csv("seconds,client\n2.0,b\n0.5,a\n\n4,c\n").unwrap();
        assert_eq!(arrivals(trace, 5), [0.5, 2.0, 4.0, 4.5, 6.0]);
        assert_eq!(Trace::from_csv("t\n1\nx\n").unwrap_err().line, 3);
        assert!(Trace::from_csv("t\n-1\n").is_err() && Trace::from_csv("t\n").is_err());
    }
}
