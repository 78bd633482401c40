//! Which records and snapshots of a file make a log that processes open. Pure.
//!
//! A record that is left out, or that does not read, leaves a gap, and a log has none. One that a snapshot stands for is
//! not needed: the log begins after it. For one after the newest snapshot a record that changes nothing takes its place,
//! so that every other record keeps its sequence, and with it whatever names it: the revisions that clients wait for,
//! the snapshots, and other exported files.

use catchment_bus::offline::Bounds;
use std::collections::{BTreeMap, BTreeSet};

/// Snapshots that a log keeps.
const KEPT: usize = 2;

/// What is asked of a file's records.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// The last record that stays.
    pub until: Option<u64>,
    /// Records that do not.
    pub skip: BTreeSet<u64>,
}

/// What a log is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The first record.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// Records for which one stands that changes nothing.
    pub nothing: BTreeSet<u64>,
    /// The snapshots, the oldest first.
    pub snapshots: Vec<u64>,
}

impl Plan {
    /// Where a process begins: 0, or the newest snapshot.
    pub fn begins_after(&self) -> u64 {
        self.snapshots.last().copied().unwrap_or(0)
    }
}

/// Plans a log. `sound`: the file's snapshots that read; `bad`: its records that do not, and why.
///
/// # Errors
/// Why there is none, and what would make one.
pub fn plan(file: Bounds, sound: &[u64], bad: &BTreeMap<u64, String>, wish: &Wish) -> Result<Plan, String> {
    let last = wish.until.unwrap_or(file.last);
    if last > file.last {
        return Err(format!("--until {last} is after the last record, {}", file.last));
    }
    if let Some(skipped) = wish.skip.iter().find(|skipped| !(file.first..=last).contains(*skipped)) {
        return Err(format!("--skip {skipped} is not among the records from {} to {last}", file.first));
    }
    // What a record did that reads, and is unwanted, is in every snapshot from it on. One that does not read did nothing
    // that anybody could know, or a snapshot knows better.
    let unwanted = wish.skip.iter().copied().find(|skipped| !bad.contains_key(skipped));
    let holds =
        |snapshot: &u64| *snapshot <= last && *snapshot + 1 >= file.first && unwanted.is_none_or(|u| *snapshot < u);
    let usable: Vec<u64> = sound.iter().copied().filter(holds).collect();
    let begins_after = usable.last().copied().unwrap_or(0);
    if begins_after + 1 < file.first {
        let because = unwanted.map_or_else(|| format!("up to record {last}"), |u| format!("before record {u}"));
        return Err(format!(
            "the file begins at record {}, and there is no sound snapshot in it {because} that stands for those before",
            file.first
        ));
    }
    // The log begins after the last bad record that a snapshot stands for.
    let first = bad.range(..=begins_after).next_back().map_or(file.first, |(sequence, _)| sequence + 1);
    let first = first.max(file.first);
    let needed = |sequence: &u64| *sequence > begins_after && *sequence <= last && !wish.skip.contains(sequence);
    if let Some((sequence, why)) = bad.iter().find(|(sequence, _)| needed(sequence)) {
        return Err(format!(
            "record {sequence} does not read ({why}): leave it out with --skip {sequence}, or end before it with --until {}",
            sequence - 1
        ));
    }
    let mut nothing: BTreeSet<u64> = wish.skip.iter().copied().filter(|skipped| *skipped >= first).collect();
    let mut snapshots: Vec<u64> = usable.into_iter().filter(|snapshot| *snapshot + 1 >= first).collect();
    snapshots.drain(..snapshots.len().saturating_sub(KEPT));
    if first <= last {
        return Ok(Plan { first, last, nothing, snapshots });
    }
    if begins_after == 0 {
        return Err(
            "no record stays, and no snapshot: that is an empty log, which a process makes by itself".to_owned()
        );
    }
    // New records are numbered after the last one, so there has to be one.
    nothing.insert(begins_after);
    Ok(Plan { first: begins_after, last: begins_after, nothing, snapshots: vec![begins_after] })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Bounds = Bounds { first: 11, last: 30 };

    fn bad(sequences: &[u64]) -> BTreeMap<u64, String> {
        sequences.iter().map(|sequence| (*sequence, "flipped".to_owned())).collect()
    }

    fn wish(until: Option<u64>, skip: &[u64]) -> Wish {
        Wish { until, skip: skip.iter().copied().collect() }
    }

    fn made(first: u64, last: u64, nothing: &[u64], snapshots: &[u64]) -> Result<Plan, String> {
        Ok(Plan { first, last, nothing: nothing.iter().copied().collect(), snapshots: snapshots.to_vec() })
    }

    #[test]
    fn a_sound_log_stays_what_it_is() {
        assert_eq!(plan(FILE, &[10, 20], &bad(&[]), &wish(None, &[])), made(11, 30, &[], &[10, 20]));
        let whole = Bounds { first: 1, last: 5 };
        assert_eq!(plan(whole, &[], &bad(&[]), &wish(None, &[])), made(1, 5, &[], &[]));
        assert_eq!(
            plan(FILE, &[9, 10, 12, 20], &bad(&[]), &wish(None, &[])),
            made(11, 30, &[], &[12, 20]),
            "two are kept"
        );
    }

    #[test]
    fn a_cut_keeps_the_snapshots_before_it() {
        assert_eq!(plan(FILE, &[10, 20], &bad(&[]), &wish(Some(25), &[])), made(11, 25, &[], &[10, 20]));
        assert_eq!(plan(FILE, &[10, 20], &bad(&[]), &wish(Some(19), &[])), made(11, 19, &[], &[10]));
        assert_eq!(
            plan(FILE, &[10, 20], &bad(&[]), &wish(Some(10), &[])),
            made(10, 10, &[10], &[10]),
            "the snapshot alone"
        );
        assert!(plan(FILE, &[20], &bad(&[]), &wish(Some(19), &[])).unwrap_err().contains("no sound snapshot"));
        assert!(plan(FILE, &[20], &bad(&[]), &wish(Some(31), &[])).unwrap_err().contains("after the last"));
    }

    #[test]
    fn a_bad_record_after_the_newest_snapshot_has_to_be_named() {
        let why = plan(FILE, &[20], &bad(&[28, 29]), &wish(None, &[])).unwrap_err();
        assert!(why.contains("--skip 28") && why.contains("--until 27") && why.contains("flipped"), "{why}");
        assert!(plan(FILE, &[20], &bad(&[28, 29]), &wish(None, &[28])).unwrap_err().contains("--skip 29"));
        assert_eq!(plan(FILE, &[20], &bad(&[28, 29]), &wish(None, &[28, 29])), made(11, 30, &[28, 29], &[20]));
        assert_eq!(plan(FILE, &[20], &bad(&[28, 29]), &wish(Some(27), &[])), made(11, 27, &[], &[20]));
    }

    #[test]
    fn a_bad_record_that_a_snapshot_stands_for_is_not_needed() {
        assert_eq!(plan(FILE, &[10, 20], &bad(&[15, 17]), &wish(None, &[])), made(18, 30, &[], &[20]));
        assert_eq!(plan(FILE, &[10, 20], &bad(&[15]), &wish(None, &[15])), made(16, 30, &[], &[20]), "it may be named");
        assert_eq!(plan(FILE, &[10, 20], &bad(&[20]), &wish(None, &[])), made(21, 30, &[], &[20]));
        let all: Vec<u64> = (11..=30).collect();
        assert_eq!(plan(FILE, &[10, 30], &bad(&all), &wish(None, &[])), made(30, 30, &[30], &[30]));
    }

    /// What an unwanted record did is in the snapshots after it.
    #[test]
    fn an_unwanted_record_takes_the_snapshots_after_it_along() {
        assert_eq!(plan(FILE, &[10, 20], &bad(&[]), &wish(None, &[15])), made(11, 30, &[15], &[10]));
        assert!(plan(FILE, &[20], &bad(&[]), &wish(None, &[15])).unwrap_err().contains("before record 15"));
        assert!(plan(FILE, &[20], &bad(&[]), &wish(None, &[10])).unwrap_err().contains("not among"));
        assert!(plan(FILE, &[20], &bad(&[]), &wish(Some(20), &[21])).unwrap_err().contains("not among"));
    }

    #[test]
    fn a_file_of_a_snapshot_alone_is_a_log() {
        let alone = Bounds { first: 21, last: 20 };
        assert_eq!(plan(alone, &[20], &bad(&[]), &wish(None, &[])), made(20, 20, &[20], &[20]));
        assert!(
            plan(Bounds { first: 1, last: 0 }, &[], &bad(&[]), &wish(None, &[])).unwrap_err().contains("empty log")
        );
        assert!(
            plan(Bounds { first: 1, last: 5 }, &[], &bad(&[]), &wish(Some(0), &[])).unwrap_err().contains("empty log")
        );
    }
}
