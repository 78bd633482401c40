//! Functions that need a round's updates all at once: what they implement, and what their calls carry.
//!
//! The updates of such a round stay in shared memory until it is closed. Then every call sees all of them, in the order
//! of the clients' names, whatever the order of arrival was.

use crate::{Config, Description, Kind, Rule, Update, Values, ValuesMut};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// A function that needs every update for each coordinate, such as a median.
///
/// Different ranges of coordinates may be worked on at one time, by different instances.
pub trait CoordinateWise: Sized {
    /// What the function is.
    const DESCRIPTION: Description;

    /// Makes the function from a job's configuration, or refuses with a reason that names the field.
    ///
    /// # Errors
    /// A sentence for the person who wrote the configuration.
    fn init(config: &Config) -> Result<Self, String>;

    /// Makes the model's numbers of a range out of every update's.
    ///
    /// # Errors
    /// A sentence for the job's owner; the round is not committed.
    fn combine(&self, call: Combine<'_>) -> Result<(), String>;
}

/// A function that looks at a round's updates first and then combines those it chose, such as Krum.
///
/// The phases: [`TwoPhase::measure`] adds numbers up over all coordinates, [`TwoPhase::choose`] turns them into a weight
/// for each update, [`TwoPhase::combine`] makes the model out of the updates whose weight is not 0.
pub trait TwoPhase: Sized {
    /// What the function is.
    const DESCRIPTION: Description;

    /// Makes the function from a job's configuration, or refuses with a reason that names the field.
    ///
    /// # Errors
    /// A sentence for the person who wrote the configuration.
    fn init(config: &Config) -> Result<Self, String>;

    /// How many numbers a round of so many updates is measured by: at most [`SCALARS_MAX`].
    fn scalars(&self, updates: usize) -> usize;

    /// Adds what a range of coordinates contributes to the numbers.
    fn measure(&self, call: Measure<'_>);

    /// Chooses.
    ///
    /// # Errors
    /// A sentence for the job's owner; the round is not committed.
    fn choose(&self, call: Choose<'_>) -> Result<(), String>;

    /// Makes the model's numbers of a range out of the chosen updates', each with the weight that it was given.
    ///
    /// # Errors
    /// A sentence for the job's owner; the round is not committed.
    fn combine(&self, call: Combine<'_>) -> Result<(), String>;
}

/// A function whose updates do not have the model's coordinates, such as stacks of low-rank factors.
///
/// It makes one tensor of the model at a time, with every update as a whole at hand. Different tensors may be worked on
/// at one time, by different instances.
pub trait Whole: Sized {
    /// What the function is. Its update layout is a template or free.
    const DESCRIPTION: Description;

    /// Makes the function from a job's configuration, or refuses with a reason that names the field.
    ///
    /// # Errors
    /// A sentence for the person who wrote the configuration.
    fn init(config: &Config) -> Result<Self, String>;

    /// Makes one tensor of the model.
    ///
    /// # Errors
    /// A sentence for the job's owner; the round is not committed.
    fn make(&self, call: Make<'_>) -> Result<(), String>;
}

/// Most numbers that a round is measured by: a square of 256 updates.
pub const SCALARS_MAX: usize = 1 << 16;

/// Makes the model's numbers of a range of coordinates.
#[derive(Debug)]
pub struct Combine<'a> {
    /// What the spec asks of this tensor.
    pub rule: Rule,
    /// What the updates are.
    pub kind: Kind,
    /// The updates: 1 to 256.
    pub updates: &'a [Update<'a>],
    /// The model before the round. There for deltas, and when the description asks for it.
    pub previous: Option<Values<'a>>,
    /// The new model, in the model's own dtype. Its former content means nothing and must be overwritten.
    pub out: ValuesMut<'a>,
    /// The only randomness there is: equal for every range of a round, different from round to round.
    pub seed: u64,
}

impl Combine<'_> {
    /// Writes the combined numbers from `start` on: as they are, or added to the model before the round when updates
    /// are differences to it. Each is rounded once.
    ///
    /// # Errors
    /// Differences without the model that they start from.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write(&mut self, start: usize, numbers: &mut [f64]) -> Result<(), String> {
        if self.kind == Kind::Delta {
            let previous = self.previous.ok_or("deltas need the previous model")?;
            let mut before = [0.0; 64];
            for (number, numbers) in numbers.chunks_mut(64).enumerate() {
                let before = &mut before[..numbers.len()];
                previous.read(start + number * 64, before);
                for (x, before) in numbers.iter_mut().zip(before) {
                    *x += *before;
                }
            }
        }
        self.out.write(start, numbers);
        Ok(())
    }
}

/// Measures a range of coordinates.
#[derive(Debug)]
pub struct Measure<'a> {
    /// What the spec asks of this tensor.
    pub rule: Rule,
    /// What the updates are.
    pub kind: Kind,
    /// Numbers in the range.
    pub elements: usize,
    /// The updates: 1 to 256.
    pub updates: &'a [Update<'a>],
    /// The model before the round. There for deltas, and when the description asks for it.
    pub previous: Option<Values<'a>>,
    /// What other ranges have contributed; as many as [`TwoPhase::scalars`] says. To be added to.
    pub sums: &'a mut [f64],
}

/// Chooses among a round's updates.
#[derive(Debug)]
pub struct Choose<'a> {
    /// The updates, without their numbers.
    pub updates: &'a [Update<'a>],
    /// What was measured: one list after the other, each of the coordinates that one instance went through.
    pub sums: &'a [f64],
    /// Numbers of each list.
    pub scalars: usize,
    /// A weight for each update, 0 at first: those that stay 0 are left out.
    pub weights: &'a mut [f64],
    /// The only randomness there is.
    pub seed: u64,
}

impl Choose<'_> {
    /// The lists added up, in their order.
    pub fn totals(&self) -> Vec<f64> {
        let mut totals = vec![0.0; self.scalars];
        for list in self.sums.chunks_exact(self.scalars.max(1)) {
            for (total, x) in totals.iter_mut().zip(list) {
                *total += x;
            }
        }
        totals
    }
}

/// A tensor of an update or of the model.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [u32],
    /// Its numbers, row by row.
    pub values: Values<'a>,
}

/// One client's update, as a whole.
#[derive(Debug)]
pub struct Bag<'a> {
    /// Its tensors, in the order of its file.
    pub tensors: Vec<Tensor<'a>>,
    /// The weight it was submitted with: finite and positive.
    pub weight: f64,
    /// Training examples behind it.
    pub num_samples: f64,
    /// How many rounds old its base model is; 0 in synchronous jobs.
    pub staleness: u32,
}

/// Makes one tensor of the model.
#[derive(Debug)]
pub struct Make<'a> {
    /// The tensor before the round.
    pub previous: Tensor<'a>,
    /// The tensor after it. Its former content means nothing and must be overwritten.
    pub out: ValuesMut<'a>,
    /// Every update of the round: 1 to 256.
    pub updates: &'a [Bag<'a>],
    /// Sum of the updates' weights.
    pub total_weight: f64,
    /// The only randomness there is.
    pub seed: u64,
}
