//! What a runner gives up before the first function runs in it.

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::io::{Error, Result};

/// The newest set of rights that is asked for; an older kernel gives what it knows.
const RIGHTS: ABI = ABI::V6;

/// Gives up rights of this thread, and of all that it starts: call it while there is no other. Says what it gave up.
pub fn confine(user: Option<(u32, u32)>) -> Result<String> {
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files })?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let mut given_up = Vec::new();
    if let Some((user, group)) = user {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
        given_up.push(format!("runs as user {}", user.as_raw()));
    }
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(RIGHTS))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(RIGHTS)))
        .and_then(|rules| rules.scope(Scope::from_all(RIGHTS)))
        .and_then(|rules| rules.create())
        .and_then(|rules| rules.restrict_self());
    match restricted.map_err(Error::other)?.ruleset {
        RulesetStatus::FullyEnforced => given_up.push("no files, no network (Landlock)".to_owned()),
        RulesetStatus::PartiallyEnforced => given_up.push("no files (Landlock of an older kernel)".to_owned()),
        RulesetStatus::NotEnforced => given_up.push("this kernel has no Landlock".to_owned()),
    }
    Ok(given_up.join(", "))
}
