//! How far a log has come, as far as this process knows: what its followers wait for.

use tokio::sync::watch;

pub(crate) struct Growth(watch::Sender<u64>);

impl Default for Growth {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Growth {
    /// The highest sequence known.
    pub(crate) fn known(&self) -> u64 {
        *self.0.borrow()
    }

    pub(crate) fn note(&self, sequence: u64) {
        self.0.send_if_modified(|known| {
            let is_news = sequence > *known;
            *known = sequence.max(*known);
            is_news
        });
    }

    /// Takes back what was known when the log said that it ends at `last`. Without this a wrong hint would have
    /// followers ask for ever for what is not there. What came to be known meanwhile stays.
    pub(crate) fn correct(&self, known_before: u64, last: u64) {
        self.0.send_if_modified(|known| {
            let is_wrong = *known == known_before && last < *known;
            if is_wrong {
                *known = last;
            }
            is_wrong
        });
    }

    /// Waits until more than `after` is known.
    pub(crate) async fn past(&self, after: u64) {
        // The sender is `self`, so the channel does not close meanwhile.
        let _ = self.0.subscribe().wait_for(|known| *known > after).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_highest_counts_until_it_is_corrected() {
        let growth = Growth::default();
        assert!(growth.past(0).now_or_never().is_none());
        growth.note(7);
        growth.note(5);
        assert_eq!(growth.known(), 7);
        assert!(growth.past(6).now_or_never().is_some() && growth.past(7).now_or_never().is_none());
        growth.note(9);
        growth.correct(7, 6);
        assert_eq!(growth.known(), 9, "it grew while the log was asked");
        growth.correct(9, 9);
        growth.correct(9, 12);
        assert_eq!(growth.known(), 9);
        growth.correct(9, 6);
        assert_eq!(growth.known(), 6);
    }
}
