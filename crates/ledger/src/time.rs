//! The log's own time, by which receipts grow old.
//!
//! Writers' clocks differ, and one may be years off. What a record is shown to have happened at stays what its writer said.
//! But its round would be forgotten at once, or never, if that were compared with what another has said; so each record's time
//! is bounded by the one before it. From feature level 2 on.

use catchment_types::TimeMs;

/// The first record of a writer takes the log's time on by so much at most, whatever its clock says.
const AHEAD_MS_MAX: u64 = 3_600_000;

/// The log's time at a record that says that it is `at_ms`, when the time before was `newest_ms`, 0 at first. `said_ms`: the
/// latest time that its writer has said before. Never goes back, and no further than that writer says has passed since.
pub(crate) fn bounded(newest_ms: TimeMs, at_ms: TimeMs, said_ms: Option<TimeMs>) -> TimeMs {
    if newest_ms == 0 {
        return at_ms;
    }
    let ahead_ms = said_ms.map_or(AHEAD_MS_MAX, |said| at_ms.saturating_sub(said));
    at_ms.clamp(newest_ms, newest_ms.saturating_add(ahead_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: TimeMs = 3_600_000;

    #[test]
    fn time_never_goes_back_and_no_further_than_its_writer_says_has_passed() {
        let (mut newest_ms, mut right, mut wrong) = (0, None, None);
        let mut at = |said: &mut Option<TimeMs>, at_ms| {
            newest_ms = bounded(newest_ms, at_ms, *said);
            *said = (*said).max(Some(at_ms));
            newest_ms
        };
        assert_eq!(at(&mut right, 100 * HOUR), 100 * HOUR);
        assert_eq!(at(&mut right, 99 * HOUR), 100 * HOUR);
        assert_eq!(at(&mut right, 150 * HOUR), 150 * HOUR, "nothing happened for two days");
        assert_eq!(at(&mut wrong, 9_999 * HOUR), 151 * HOUR);
        assert_eq!(at(&mut wrong, 9_999 * HOUR + 5), 151 * HOUR + 5);
        assert_eq!(at(&mut right, 151 * HOUR), 151 * HOUR + 5);
        assert_eq!(at(&mut right, 152 * HOUR), 152 * HOUR, "it is right again");
        assert_eq!(at(&mut None, TimeMs::MAX), 153 * HOUR);
    }
}
