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
    let restricted = restricted.map_err(Error::other)?.ruleset;
    catchment_proxy::drop_all()?;
    crate::syscalls::give_up()?;
    given_up.push("only the system calls that it needs (seccomp)".to_owned());
    match restricted {
        RulesetStatus::FullyEnforced => given_up.push("no files, no network (Landlock)".to_owned()),
        RulesetStatus::PartiallyEnforced => given_up.push("no files (Landlock of an older kernel)".to_owned()),
        RulesetStatus::NotEnforced if user.is_none() => {
            // Then nothing but the sandbox would keep a function from the node's own files.
            return Err(Error::other("this kernel has no Landlock, and runners no user of their own (--runner-user)"));
        }
        RulesetStatus::NotEnforced => given_up.push("this kernel has no Landlock".to_owned()),
    }
    Ok(given_up.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::io::{ErrorKind, Read};
    use std::os::fd::AsRawFd;

    /// A confined thread can use what it was given, and open nothing: not even what it was given, for writing.
    #[test]
    fn what_was_given_works_and_nothing_else_opens() {
        let file = tempfile::tempdir().unwrap();
        let path = file.path().join("slab");
        std::fs::write(&path, "update").unwrap();
        let mut given = File::open(&path).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ((ready, is_ready), (go_on, may_go_on)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
        let confined = std::thread::spawn(move || {
            let thread = rustix::thread::gettid();
            let said = confine(None).unwrap();
            ready.send(thread).unwrap();
            may_go_on.recv().unwrap();
            if !said.contains("no files") {
                eprintln!("skipped: {said}");
                return;
            }
            let refused = |result: Result<File>| assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
            refused(File::open("/etc/passwd"));
            refused(File::create(path.with_extension("new")));
            let again = format!("/proc/self/fd/{}", given.as_raw_fd());
            refused(OpenOptions::new().write(true).open(again));
            let denied = |error: Error| assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            denied(std::process::Command::new("/bin/true").spawn().unwrap_err());
            denied(std::net::UdpSocket::bind("127.0.0.1:0").unwrap_err());
            denied(std::net::TcpStream::connect(address).unwrap_err());
            denied(given.set_len(1).unwrap_err());
            std::thread::spawn(|| {}).join().unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status");
            assert!(status.is_err(), "not even that");
            let mut text = String::new();
            given.read_to_string(&mut text).unwrap();
            assert_eq!(text, "update");
        });
        let thread = is_ready.recv().unwrap().as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
        for none in ["CapPrm", "CapEff", "CapInh"] {
            assert!(status.contains(&format!("{none}:\t0000000000000000\n")), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
        go_on.send(()).unwrap();
        confined.join().unwrap();
    }
}
