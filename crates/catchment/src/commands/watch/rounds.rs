//! Which round a model version came out of, and how many rounds gave none.
//!
//! The list of models does not name rounds. Every round that ended either published the next version or was skipped,
//! so the number of skipped rounds follows from the newest round and the model it trains from; where that number did
//! not change between two looks, the round of each version in between is known.

use crate::text::time_ms;
use catchment_client::JobInfo;
use catchment_types::{ModelView, RoundState, RoundView};
use serde::Serialize;

/// A model that was published.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Published {
    /// The round it came out of, where that is known.
    pub round: Option<u64>,
    /// Milliseconds since the version before, which is when its round could open.
    pub duration_ms: Option<u64>,
    /// The model.
    #[serde(flatten)]
    pub model: ModelView,
}

/// What was told of a job so far.
#[derive(Debug)]
pub struct Rounds {
    version: u64,
    skipped: u64,
}

impl Rounds {
    /// Models up to version `after` are known. Rounds skipped so far are, unless the look goes back before them.
    pub fn new(job: &JobInfo, after: u64) -> Self {
        let looks_back = job.model_version.is_some_and(|newest| newest > after);
        Self { version: after, skipped: if looks_back { 0 } else { skipped(&job.round) } }
    }

    /// The newest version that was told of.
    pub fn told(&self) -> u64 {
        self.version
    }

    /// What there is to tell of `models`, which go from the newest version told of to now, oldest first. To be called
    /// before [`skipped`](Self::skipped) of the same look.
    pub fn published(&mut self, job: &JobInfo, models: Vec<ModelView>) -> Vec<Published> {
        let skipped = Some(skipped(&job.round)).filter(|now| *now == self.skipped);
        let mut before_ms = None;
        let mut published = Vec::new();
        // The list was asked for after the job: what it has beyond belongs to the next look.
        for model in models.into_iter().take_while(|model| Some(model.version) <= job.model_version) {
            let at_ms = time_ms(&model.created_at);
            if model.version > self.version {
                self.version = model.version;
                let duration_ms = at_ms.zip(before_ms).and_then(|(at, before): (u64, u64)| at.checked_sub(before));
                published.push(Published { round: skipped.map(|n| model.version + n), duration_ms, model });
            }
            before_ms = at_ms;
        }
        published
    }

    /// How many rounds ended without a model since the last look.
    pub fn skipped(&mut self, job: &JobInfo) -> u64 {
        let now = skipped(&job.round);
        now.saturating_sub(std::mem::replace(&mut self.skipped, now))
    }
}

/// Rounds that ended without a model: those that ended, less those that published the version after their own.
fn skipped(round: &RoundView) -> u64 {
    let before = round.round.saturating_sub(1).saturating_sub(round.model_version.unwrap_or(0));
    if round.state == RoundState::Skipped { before + 1 } else { before }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(round: u64, state: &str, base: u64, newest: u64) -> JobInfo {
        let uid = "ab".repeat(16);
        serde_json::from_value(json!({
            "uid": uid, "state": "running", "created_at": "2026-01-01T00:00:00.000Z", "model_version": newest,
            "spec": {}, "round": {"uid": uid, "revision": 1, "round": round, "state": state, "job_state": "running",
                "model_version": base, "goal": 2, "received": 0, "folded": 0, "deadline_at": null},
        }))
        .unwrap()
    }

    fn models(versions: std::ops::RangeInclusive<u64>) -> Vec<ModelView> {
        let model = |version: u64| {
            serde_json::from_value(json!({"version": version, "etag": "cd".repeat(32), "bytes": 1, "contributors": 2,
                "created_at": format!("2026-01-01T00:00:{:02}.500Z", version), "parent": version.checked_sub(1),
                "function": null, "metrics": {}, "available": true}))
            .unwrap()
        };
        versions.map(model).collect()
    }

    fn told(published: Vec<Published>) -> Vec<(u64, Option<u64>, Option<u64>)> {
        published.into_iter().map(|model| (model.model.version, model.round, model.duration_ms)).collect()
    }

    #[test]
    fn versions_are_told_once_with_round_and_duration() {
        let mut rounds = Rounds::new(&job(1, "open", 0, 0), 0);
        let committed = job(1, "committed", 0, 1);
        assert_eq!(told(rounds.published(&committed, models(0..=1))), [(1, Some(1), Some(1000))]);
        assert_eq!((rounds.skipped(&committed), rounds.told()), (0, 1));
        assert_eq!(told(rounds.published(&committed, models(1..=1))), []);
        let later = job(4, "open", 3, 3);
        let expected = [(2, Some(2), Some(1000)), (3, Some(3), Some(1000))];
        assert_eq!(told(rounds.published(&later, models(1..=4))), expected);
        assert_eq!(rounds.skipped(&later), 0);
    }

    #[test]
    fn a_skipped_round_is_counted_once_and_moves_the_next() {
        let mut rounds = Rounds::new(&job(2, "open", 1, 1), 1);
        assert_eq!(rounds.skipped(&job(2, "skipped", 1, 1)), 1);
        let open = job(3, "open", 1, 1);
        assert_eq!(rounds.skipped(&open), 0);
        let committed = job(3, "committed", 1, 2);
        assert_eq!(told(rounds.published(&committed, models(1..=2))), [(2, Some(3), Some(1000))]);
        assert_eq!(rounds.skipped(&committed), 0);
        // One model and one skipped round between two looks: which came first is not known.
        let unseen = job(6, "open", 3, 3);
        assert_eq!(told(rounds.published(&unseen, models(2..=3))), [(3, None, Some(1000))]);
        assert_eq!(rounds.skipped(&unseen), 1);
    }

    #[test]
    fn looking_back_begins_at_the_first_round() {
        let over = job(5, "committed", 3, 4);
        let mut rounds = Rounds::new(&over, 0);
        assert_eq!(rounds.published(&over, models(0..=4)).len(), 4);
        assert_eq!(rounds.skipped(&over), 1);
        let mut rounds = Rounds::new(&over, 4);
        assert_eq!((rounds.skipped(&over), rounds.told()), (0, 4));
    }
}
