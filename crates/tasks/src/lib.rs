//! Who trains or measures what, and when the others ask again.
//!
//! A [`Desk`] answers check-ins. It reads the ledger's state of a job and remembers what the log does not know: who has a
//! task in hand, who waits, and when each was told to come again. All of that may be forgotten at any time: a desk that
//! begins anew hands out a few tasks too many, and nothing else goes wrong. Hence no I/O here, no clock and no randomness
//! of its own: the time comes with every call, and lots are drawn from a seed, so a hundred thousand clients can be
//! simulated in a second.
//!
//! **Places.** A round has `goal · over_provision` of them. An accepted update takes one for good, a task in hand for as
//! long as it lasts. Measuring tasks come on top.
//!
//! **Lots.** Where a policy chooses, those who ask within a window are collected and lots are drawn at its end. Nobody can
//! wait for an answer, so a candidate is told to come again right after the draw. The alternative is to answer at once,
//! with a probability that follows the estimated number of those waiting; but then the estimate decides how many are
//! chosen, and whoever asks more often is chosen more often. Here a client is one candidate however often it asks, and one
//! that comes before it was told to is none.
//!
//! **Pacing.** Whoever has to wait gets an appointment from a book with so many places a second ([`RATE_MAX_PER_S`] for the
//! whole desk), within a window that grows with the number waiting: see [`appointment_bounds`].
//!
//! **Memory.** Per waiting client a name of eight bytes and a time, [`WAITING_BYTES`] with the table's slack, for at most
//! [`WAITING_MAX`] of a job: 100,000 waiting take 2.3 MB. Per task in hand and per candidate about a hundred bytes;
//! there are no more of them than places, and than come in a window. With `utility` another 32 to 56 bytes for each client
//! that ever gave an update, for at most 131,072 of a job.
#![forbid(unsafe_code)]

mod book;
mod desk;
mod floor;
mod hands;
mod home;
mod lots;
mod pacing;
mod seed;
mod table;
mod tasks;
mod utility;

pub use desk::Desk;
pub use home::home;
pub use pacing::{Crowd, RATE_MAX_PER_S, RETRY_MS_MAX, RETRY_MS_MIN, appointment_bounds};
pub use table::{WAITING_BYTES, WAITING_MAX};
pub use tasks::wait;
