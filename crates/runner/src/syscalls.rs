//! The system calls that a runner keeps.
//!
//! Landlock says nothing of other processes, of sockets but TCP, and of descriptors that were handed over. Without this a
//! function that broke out could leave a child behind that writes accumulators after the runner's end, or cut a file that
//! the node has mapped. What is kept is a list, because what the next kernel brings is nothing that a runner needs.

use libc::{CLONE_THREAD, ENOSYS, EPERM, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use std::collections::BTreeMap;
use std::io::{Error, Result};

/// Kept, whatever the arguments: own memory, own threads, time, and what descriptors say that were handed over. (The kernel
/// changes no file through a descriptor that is only to be read.)
const KEPT: [c_long; 38] = [
    // Descriptors: the control socket, the link, files of orders, and the log on standard error.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_fstat,
    libc::SYS_close,
    // Memory, and code in it.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_membarrier,
    // Threads. What is called 3 is answered by the other filter.
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Traps of functions.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time and randomness.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
];

/// What memory may be told. Not to be taken out of its file: that would cut it for everybody.
const ADVICE: [libc::c_int; 8] = [
    libc::MADV_NORMAL,
    libc::MADV_WILLNEED,
    libc::MADV_DONTNEED,
    libc::MADV_FREE,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_DONTDUMP,
    libc::MADV_COLLAPSE,
];

/// What descriptors may be asked for. No locks, no signals when something comes.
const DESCRIPTORS: [libc::c_int; 5] =
    [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_GET_SEALS];

/// A thread's name, and what the kernel said at the start (which libraries look up late).
const OF_PROCESS: [libc::c_int; 2] = [libc::PR_SET_NAME, PR_GET_AUXV];
const PR_GET_AUXV: libc::c_int = 0x4155_5856;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;
type Condition = std::result::Result<SeccompCondition, BackendError>;

/// An argument is this number, of which the kernel looks at 32 bits.
fn is(argument: u8, value: u32) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())
}

/// An argument has all of these bits.
fn has(argument: u8, bits: u64) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), bits)
}

/// One of these is enough.
fn any(conditions: impl IntoIterator<Item = Condition>) -> std::result::Result<Vec<SeccompRule>, BackendError> {
    conditions.into_iter().map(|condition| SeccompRule::new(vec![condition?])).collect()
}

/// What is kept by a process with this number.
fn kept(own: u32) -> std::result::Result<Rules, BackendError> {
    let mut rules: Rules = KEPT.iter().map(|call| (*call, vec![])).collect();
    rules.insert(libc::SYS_madvise, any(ADVICE.map(|advice| is(2, advice.unsigned_abs())))?);
    rules.insert(libc::SYS_fcntl, any(DESCRIPTORS.map(|command| is(1, command.unsigned_abs())))?);
    rules.insert(libc::SYS_prctl, any(OF_PROCESS.map(|option| is(0, option.unsigned_abs())))?);
    // A thread is a clone with this flag; anything else is a process.
    rules.insert(libc::SYS_clone, any([has(0, CLONE_THREAD.unsigned_abs().into())])?);
    // How libraries write `fstat`. The name cannot be looked at; files tell no more than that they are there.
    rules.insert(libc::SYS_newfstatat, any([is(3, libc::AT_EMPTY_PATH.unsigned_abs())])?);
    rules.insert(libc::SYS_statx, any([has(2, u64::from(libc::AT_EMPTY_PATH.unsigned_abs()))])?);
    // Its own end.
    rules.insert(libc::SYS_kill, any([is(0, own)])?);
    rules.insert(libc::SYS_tgkill, any([is(0, own)])?);
    Ok(rules)
}

/// Gives up the others for this thread, and all that it starts. (Threads may still be started, processes not.)
pub fn give_up() -> Result<()> {
    let arch = std::env::consts::ARCH.try_into().map_err(Error::other)?;
    let filter = |rules, others, these| -> Result<BpfProgram> {
        let filter = SeccompFilter::new(rules, others, these, arch).map_err(Error::other)?;
        filter.try_into().map_err(Error::other)
    };
    // Its flags lie in memory, where a filter cannot look. As if the kernel did not know it: then clone is used. First,
    // because the other filter allows no further ones; of two answers the kernel takes the stricter.
    let unknown = [(libc::SYS_clone3, vec![])].into_iter().collect();
    let unknown = filter(unknown, SeccompAction::Allow, SeccompAction::Errno(ENOSYS.unsigned_abs()))?;
    apply_filter(&unknown).map_err(Error::other)?;
    let kept = kept(std::process::id()).map_err(Error::other)?;
    let kept = filter(kept, SeccompAction::Errno(EPERM.unsigned_abs()), SeccompAction::Allow)?;
    apply_filter(&kept).map_err(Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{self, FallocateFlags, FlockOperation, MemfdFlags, Mode, OFlags, Timestamps, inotify};
    use rustix::io::Errno;
    use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
    use rustix::process::{self, DumpableBehavior, PidfdFlags, Resource, Signal};
    use rustix::thread::{self, CpuSet};
    use std::fs::File;
    use std::io::{ErrorKind, Read, Write};
    use std::os::fd::AsFd;

    /// Runs on a thread that has given them up.
    fn confined<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        let run = move || {
            give_up().unwrap();
            run()
        };
        std::thread::spawn(run).join().unwrap()
    }

    fn file() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"update").unwrap();
        file
    }

    /// Each would succeed, or fail for another reason, without the filter.
    #[test]
    fn every_class_of_calls_that_is_not_needed_is_refused() {
        let (file, folder) = (file(), tempfile::tempdir().unwrap());
        let [new, none, link] = ["new", "none", "link"].map(|name| folder.path().join(name));
        let refused = confined(move || {
            let (fd, first, cpus) = (file.as_fd(), process::Pid::from_raw(1).unwrap(), CpuSet::new());
            let then = fs::Timespec { tv_sec: 0, tv_nsec: 0 };
            let then = Timestamps { last_access: then, last_modification: then };
            let unlimited = process::Rlimit { current: None, maximum: None };
            let program = std::process::Command::new("/bin/true").spawn().err().and_then(|error| error.raw_os_error());
            [
                // Other processes and programs.
                ("a program", program.map_or(Ok(()), |error| Err(Errno::from_raw_os_error(error)))),
                ("kill another process", process::kill_process(first, Signal::CONT)),
                ("kill a group", process::kill_process_group(first, Signal::CONT)),
                ("look whether another process is there", process::test_kill_process(first)),
                ("a descriptor of a process", process::pidfd_open(first, PidfdFlags::empty()).map(drop)),
                ("leave its group", process::setpgid(None, None)),
                ("leave its session", process::setsid().map(drop)),
                ("its place among processes", process::setpriority_process(None, 1)),
                ("where it runs", thread::sched_setaffinity(None, &cpus)),
                ("its limits", process::setrlimit(Resource::Nofile, unlimited)),
                ("another name space", thread::move_into_link_name_space(fd, None)),
                ("who may look into it", process::set_dumpable_behavior(DumpableBehavior::Dumpable)),
                // Sockets.
                ("a socket", net::socket(AddressFamily::UNIX, SocketType::STREAM, None).map(drop)),
                ("a network", net::socket(AddressFamily::INET, SocketType::DGRAM, None).map(drop)),
                (
                    "a pair",
                    net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None).map(drop),
                ),
                ("an end", net::shutdown(fd, net::Shutdown::Both)),
                // Files by name.
                ("a file", fs::open("/proc/self/status", OFlags::RDONLY, Mode::empty()).map(drop)),
                ("a folder", fs::mkdir(&new, Mode::RWXU)),
                ("a name", fs::rename(&none, &new)),
                ("no name", fs::unlink(&none)),
                ("a link", fs::symlink(&none, &link)),
                ("what a link says", fs::readlink("/proc/self/exe", Vec::new()).map(drop)),
                ("whether there is one", fs::stat("/etc/passwd").map(drop)),
                ("rights by name", fs::chmod(&none, Mode::RWXU)),
                ("where it is", process::chdir("/")),
                ("another root", process::chroot("/")),
                // Files that it has.
                ("a cut", fs::ftruncate(fd, 1)),
                ("a hole", fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 1)),
                ("a lock", fs::flock(fd, FlockOperation::NonBlockingLockShared)),
                ("a lock of a range", fs::fcntl_lock(fd, FlockOperation::NonBlockingLockShared)),
                ("rights", fs::fchmod(fd, Mode::RWXU)),
                ("an owner", fs::fchown(fd, None, None)),
                ("times", fs::futimens(fd, &then)),
                ("an attribute", fs::fsetxattr(fd, "user.a", b"b", fs::XattrFlags::empty())),
                ("the disk", fs::fsync(fd)),
                ("seals", fs::fcntl_add_seals(fd, fs::SealFlags::SEAL)),
                ("flags", fs::fcntl_setfl(fd, OFlags::NONBLOCK)),
                ("a copy", fs::copy_file_range(fd, None, fd, None, 1).map(drop)),
                ("what the kernel copies", fs::sendfile(fd, fd, None, 1).map(drop)),
                // The kernel's tools.
                ("memory with a name", fs::memfd_create("a", MemfdFlags::CLOEXEC).map(drop)),
                ("news of files", inotify::init(inotify::CreateFlags::CLOEXEC).map(drop)),
                (
                    "a timer",
                    rustix::time::timerfd_create(
                        rustix::time::TimerfdClockId::Monotonic,
                        rustix::time::TimerfdFlags::CLOEXEC,
                    )
                    .map(drop),
                ),
                ("capabilities", thread::capabilities(None).map(drop)),
            ]
        });
        for (what, result) in refused {
            assert_eq!(result, Err(Errno::PERM), "{what}");
        }
    }

    #[test]
    fn what_a_runner_needs_is_kept() {
        let (mut given, (mut here, mut there)) = (file(), std::os::unix::net::UnixStream::pair().unwrap());
        confined(move || {
            std::io::Seek::rewind(&mut given).unwrap();
            let mut text = String::new();
            given.try_clone().unwrap().read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), given.metadata().unwrap().len()), ("update", 6));
            here.write_all(b"a").unwrap();
            let mut byte = [0];
            there.read_exact(&mut byte).unwrap();
            let named = std::thread::Builder::new().name("worker".to_owned());
            named.spawn(|| std::thread::sleep(std::time::Duration::from_millis(1))).unwrap().join().unwrap();
            // Large enough to be mapped, grown, and given back.
            let mut large = vec![1_u8; 40 << 20];
            large.resize(80 << 20, 2);
            large.shrink_to(1 << 20);
            assert_eq!(large.len(), 80 << 20);
            process::test_kill_process(process::getpid()).unwrap();
            assert!(std::thread::available_parallelism().is_ok());
            let error = std::net::UdpSocket::bind("127.0.0.1:0").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        });
    }

    /// Calls that have no safe wrapper here, by their numbers.
    #[test]
    fn nothing_dangerous_is_on_the_list() {
        let dangerous = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_process_madvise,
            libc::SYS_pidfd_getfd,
            libc::SYS_pidfd_send_signal,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_rt_tgsigqueueinfo,
            libc::SYS_tkill,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_accept4,
            libc::SYS_setsockopt,
            libc::SYS_truncate,
            libc::SYS_pwrite64,
            libc::SYS_splice,
            libc::SYS_vmsplice,
            libc::SYS_ioctl,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_personality,
            libc::SYS_seccomp,
            libc::SYS_setuid,
            libc::SYS_capset,
            libc::SYS_shmget,
            libc::SYS_msgget,
            libc::SYS_mq_open,
        ];
        let kept = kept(7).unwrap();
        assert_eq!(dangerous.iter().filter(|call| kept.contains_key(call)).count(), 0);
        // The other numbering of this processor: the same calls, and a list of what is refused would not have them.
        assert!(kept.keys().all(|call| *call < 0x4000_0000));
        assert_eq!(kept.len(), KEPT.len() + 8);
    }
}
