//! What a record does to one job. Every function says why it changes nothing where that is so, and then nothing is changed.

use crate::job::Job;
use crate::models::Model;
use crate::round::{Phase, Round};
use crate::term::Term;
use catchment_types::{
    CloseReason, DurationText, Footprint, JobAction, JobState, ModelCommit, Place, SpecPatch, TimeMs,
};
use std::sync::Arc;

/// The shortest deadline a round may be given by a patch; the spec refuses a shorter one too.
const DEADLINE_MS_MIN: u64 = 100;
/// The longest, likewise: a year.
const DEADLINE_MS_MAX: u64 = 365 * 86_400_000;

pub(crate) fn active(job: &mut Job, number: u64) -> Result<&mut Round, &'static str> {
    job.round.as_mut().filter(|round| round.number == number && round.is_active()).ok_or("the round is not active")
}

pub(crate) fn patch(job: &mut Job, patch: &SpecPatch) -> Result<(), &'static str> {
    if job.state.is_over() {
        return Err("the job is over");
    }
    let spec = Arc::make_mut(&mut job.spec);
    if let Some(rounds) = patch.rounds {
        spec.rounds = rounds.max(1);
    }
    if let Some(goal) = patch.goal {
        spec.set_goal(goal);
    }
    if let Some(deadline) = patch.deadline {
        spec.deadline = Some(DurationText::from_ms(deadline.ms().clamp(DEADLINE_MS_MIN, DEADLINE_MS_MAX)));
    }
    complete_if_done(job);
    Ok(())
}

pub(crate) fn act(job: &mut Job, action: JobAction, at_ms: TimeMs, now_ms: TimeMs) -> Result<(), &'static str> {
    match (action, job.state) {
        (JobAction::Pause, JobState::Running) => {
            job.state = JobState::Paused;
            job.round.iter_mut().for_each(Round::pause);
            (job.paused_ms, job.resumed_round) = (Some(at_ms), None);
        }
        (JobAction::Resume, JobState::Paused) => {
            job.state = JobState::Running;
            resume_deadline(job, at_ms);
            job.round.iter_mut().for_each(Round::resume);
            // It had paused itself: its owner knows now, so rounds given up are counted anew.
            job.resumed_round = job.reason.take().map(|_| job.round_number());
        }
        (JobAction::Stop, state) if !state.is_over() => {
            end(job, JobState::Stopped, None);
            end_active_round(job, CloseReason::Stopped, now_ms);
        }
        _ => return Err("the job's state does not allow it"),
    }
    Ok(())
}

/// A pause does not use up the round's time: otherwise resuming a job after a night would fail its round. What is shown moves
/// by as much as the clocks of those who paused and resumed it say; how long the round stays open does not depend on them.
fn resume_deadline(job: &mut Job, at_ms: TimeMs) {
    let paused_ms = job.paused_ms.take().map_or(0, |since| at_ms.saturating_sub(since));
    if let Some(deadline) = job.round.as_mut().filter(|round| round.is_active()).and_then(|r| r.deadline_ms.as_mut()) {
        *deadline = deadline.saturating_add(paused_ms);
    }
}

pub(crate) fn fail(job: &mut Job, reason: &str, now_ms: TimeMs) -> Result<(), &'static str> {
    if job.state.is_over() {
        return Err("the job is over");
    }
    end(job, JobState::Failed, Some(reason));
    end_active_round(job, CloseReason::Stopped, now_ms);
    Ok(())
}

pub(crate) fn complete(job: &mut Job, reason: &str, now_ms: TimeMs) -> Result<(), &'static str> {
    if !matches!(job.state, JobState::Running | JobState::Paused) {
        return Err("the job is not running");
    }
    end(job, JobState::Completed, Some(reason));
    end_active_round(job, CloseReason::Stopped, now_ms);
    Ok(())
}

/// The job is over. When it was paused or resumed means nothing any more.
fn end(job: &mut Job, state: JobState, reason: Option<&str>) {
    job.state = state;
    job.reason = reason.map(str::to_owned);
    (job.paused_ms, job.resumed_round) = (None, None);
}

fn end_active_round(job: &mut Job, reason: CloseReason, ended_ms: TimeMs) {
    if let Some(round) = job.round.as_mut().filter(|round| round.is_active()) {
        round.skip(reason, ended_ms);
    }
}

pub(crate) fn put_model(
    job: &mut Job,
    model: &ModelCommit,
    needs: Footprint,
    at_ms: TimeMs,
) -> Result<(), &'static str> {
    if job.state != JobState::WaitingForModel {
        return Err("the job has a model already");
    }
    if model.version != 0 {
        return Err("the initial model is version 0");
    }
    job.models.push(Model { commit: model.clone(), round: None, at_ms });
    job.needs = needs;
    job.state = JobState::Running;
    Ok(())
}

/// `is_timed`: from feature level 2 on.
pub(crate) fn extend(
    job: &mut Job,
    number: u64,
    deadline_ms: Option<TimeMs>,
    is_timed: bool,
) -> Result<(), &'static str> {
    // The record does not say when it was written, but how long its deadline is: the job has not changed since, or its guard
    // would not hold.
    let allowed = job.spec.deadline.filter(|_| is_timed && deadline_ms.is_some());
    let round = active(job, number)?;
    let term = allowed.map(|allowed| Term::begin(round.term, allowed.ms(), round.len()));
    (round.deadline_ms, round.term) = (deadline_ms, term);
    if round.received() < round.goal {
        round.phase = Phase::Open;
    }
    Ok(())
}

pub(crate) fn place(job: &mut Job, number: u64, places: &[Place]) -> Result<(), &'static str> {
    let round = active(job, number)?;
    if round.places == places {
        return Err("it is placed there already");
    }
    round.places = places.to_vec();
    Ok(())
}

pub(crate) fn close(job: &mut Job, number: u64, reason: CloseReason, now_ms: TimeMs) -> Result<(), &'static str> {
    let round = active(job, number)?;
    match reason {
        CloseReason::Deadline => round.phase = Phase::Aggregating,
        CloseReason::Asked if round.received() == 0 => return Err("the round has no update to make a model of"),
        CloseReason::Asked => {
            round.min_updates = round.min_updates.min(round.received());
            round.phase = Phase::Aggregating;
        }
        CloseReason::Shortfall | CloseReason::Stopped => {
            round.skip(reason, now_ms);
            complete_if_done(job);
        }
    }
    Ok(())
}

pub(crate) fn commit(
    job: &mut Job,
    number: u64,
    model: &ModelCommit,
    at_ms: TimeMs,
    now_ms: TimeMs,
) -> Result<(), &'static str> {
    let version = job.models.next();
    let round = active(job, number)?;
    let ready = if model.gathered { round.is_complete() } else { round.is_ready() };
    if !ready || model.version != version || model.contribution != Some(round.contribution()) {
        return Err("the commit is not of this round's contribution set");
    }
    round.commit(version, now_ms);
    job.models.push(Model { commit: model.clone(), round: Some(number), at_ms });
    job.retire_evaluations();
    complete_if_done(job);
    Ok(())
}

fn complete_if_done(job: &mut Job) {
    if job.round_number() >= job.spec.rounds && job.active_round().is_none() && !job.state.is_over() {
        end(job, JobState::Completed, None);
    }
}
