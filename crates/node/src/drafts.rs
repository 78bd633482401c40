//! How many initial models may be on their way to the disk at one time, and how much of it they may take.
//!
//! A model becomes known only when all of it is here, so anybody may begin one; without a limit a few calls would fill the
//! disk under the event log.

use catchment_types::{Code, Problem};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The drafts of a node.
pub struct Drafts {
    taken: Mutex<Taken>,
    count_max: usize,
    bytes_max: u64,
}

/// What drafts take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// How many there are.
    pub count: usize,
    /// Bytes that they have, or are about to.
    pub bytes: u64,
}

/// The place of one draft, which is free again when this is dropped.
pub struct DraftPlace {
    drafts: Arc<Drafts>,
    bytes: u64,
}

impl Drafts {
    /// At most `count_max` at one time, with `bytes_max` bytes together.
    pub fn new(count_max: usize, bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { taken: Mutex::default(), count_max, bytes_max })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is taken now.
    pub fn taken(&self) -> Taken {
        *self.lock()
    }

    /// Takes a place for a draft of `bytes` bytes.
    ///
    /// # Errors
    /// `too_large` for one that will never fit, `no_room` while others are in its way.
    pub fn begin(self: &Arc<Self>, bytes: u64) -> Result<DraftPlace, Problem> {
        let limit = self.bytes_max;
        if bytes > limit {
            let detail = format!(
                "the model has {bytes} bytes, and initial models that are being received may take {limit} bytes of this \
                 node's disk (--draft-mib)"
            );
            return Err(Problem::new(Code::TooLarge, detail).with("limit", limit));
        }
        let mut taken = self.lock();
        if taken.count >= self.count_max || bytes > limit - taken.bytes {
            let Taken { count, bytes: others } = *taken;
            let detail = format!(
                "no room for another initial model: {count} others are being received, of {others} bytes; the limits are \
                 {} (--drafts) and {limit} bytes (--draft-mib). Try again when they are done",
                self.count_max
            );
            return Err(Problem::new(Code::NoRoom, detail));
        }
        taken.count += 1;
        taken.bytes += bytes;
        Ok(DraftPlace { drafts: self.clone(), bytes })
    }
}

impl Drop for DraftPlace {
    fn drop(&mut self) {
        let mut taken = self.drafts.lock();
        taken.count -= 1;
        taken.bytes -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_limited_in_number_and_in_bytes() {
        let drafts = Drafts::new(3, 100);
        let code = |bytes| drafts.begin(bytes).map(|_| ()).map_err(|problem| problem.code);
        assert_eq!(code(101), Err("too_large".to_owned()));
        let first = drafts.begin(70).unwrap_or_else(|problem| panic!("{problem}"));
        assert_eq!((code(31), code(30)), (Err("no_room".to_owned()), Ok(())));
        let more: Vec<_> = (0..2).map(|_| drafts.begin(0).unwrap_or_else(|problem| panic!("{problem}"))).collect();
        assert_eq!((code(0), drafts.taken()), (Err("no_room".to_owned()), Taken { count: 3, bytes: 70 }));
        drop((first, more));
        assert_eq!((code(100), drafts.taken()), (Ok(()), Taken::default()));
    }
}
