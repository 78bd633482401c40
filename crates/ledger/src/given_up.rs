//! Rounds of whose updates no model can be made: each is given up, so that the job outlives what its clients send.
//!
//! A round's number stands for one set of updates, so the number is not used again: the next round is the same one asked
//! again, and the job makes as many models as it would have made. A job that gives up round after round pauses, because
//! otherwise one client could keep it from ever making a model, and nobody would know.

use crate::change::active;
use crate::job::Job;
use crate::round::Round;
use catchment_types::{Digest, JobState, TimeMs};
use std::sync::Arc;

/// Rounds given up in a row after which a job pauses.
const IN_A_ROW_MAX: u64 = 3;

impl Job {
    /// Gives up a round, if it is still what `contribution` says; pauses the job when it is one too many.
    pub(crate) fn give_up(
        &mut self,
        number: u64,
        contribution: &Digest,
        reason: &str,
        at_ms: TimeMs,
        now_ms: TimeMs,
    ) -> Result<(), &'static str> {
        let round = active(self, number)?;
        if !round.is_complete() || round.contribution() != *contribution {
            return Err("the round has changed since");
        }
        let (stands, next) = (round.model_version, number.saturating_add(1));
        let told = format!(
            "round {number} was given up: {reason}; model version {stands} stands, and the round is asked again as round \
             {next}"
        );
        round.give_up(&told, now_ms);
        // Also where its owner has cut the number of rounds meanwhile: this one was still to make a model.
        let rounds = self.spec.rounds.max(number).saturating_add(1);
        Arc::make_mut(&mut self.spec).rounds = rounds;
        let in_a_row = self.given_up_in_a_row();
        if in_a_row >= IN_A_ROW_MAX {
            if self.state == JobState::Running {
                (self.state, self.paused_ms, self.resumed_round) = (JobState::Paused, Some(at_ms), None);
            }
            self.reason = Some(format!(
                "{in_a_row} rounds in a row were given up, the last was round {number}: {reason}; see to what its clients \
                 send, then resume the job, which asks again as round {next}"
            ));
        }
        Ok(())
    }

    /// Rounds given up since the newest model, or since the job was resumed after it had paused itself. Rounds that ended
    /// for want of updates do not count, unless they are kept no longer: then nobody knows how they ended.
    fn given_up_in_a_row(&self) -> u64 {
        let made = self.newest_model().and_then(|model| model.round).unwrap_or(0);
        let resumed = self.resumed_round.unwrap_or(0);
        let since = made.max(resumed);
        let kept = self.round.iter().chain(&self.history).take_while(|round| round.number > since);
        let others = kept.filter(|round| round.given_up().is_none()).count() as u64;
        self.round_number().saturating_sub(since).saturating_sub(others)
    }

    /// Why its last round is asked again, if it is.
    pub(crate) fn asked_again(&self) -> Option<String> {
        let running = Some(self).filter(|job| job.state == JobState::Running)?;
        running.last_ended().and_then(Round::given_up).map(str::to_owned)
    }
}
