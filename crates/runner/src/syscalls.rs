//! The system calls that a runner gives up.
//!
//! Landlock says nothing of other processes, of sockets but TCP, and of descriptors that were handed over. Without this a
//! function that broke out could leave a child behind that writes accumulators after the runner's end, or cut a file that
//! the node has mapped.

use libc::{CLONE_THREAD, ENOSYS, EPERM};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};
use std::io::{Error, Result};

/// Other processes, other programs; new sockets and what they lead to; cutting and locking files; the kernel's tools.
const GIVEN_UP: [libc::c_long; 42] = [
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_flock,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_setrlimit,
    libc::SYS_personality,
];

/// Gives them up for this thread, and all that it starts. (Threads may still be started, processes not.)
pub fn give_up() -> Result<()> {
    let arch = std::env::consts::ARCH.try_into().map_err(Error::other)?;
    let filter = |rules, action| -> Result<BpfProgram> {
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).map_err(Error::other)?;
        filter.try_into().map_err(Error::other)
    };
    // A thread is a clone with this flag; anything else is a process.
    let thread = u64::from(CLONE_THREAD.unsigned_abs());
    let no_thread =
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), 0).map_err(Error::other)?;
    let process = SeccompRule::new(vec![no_thread]).map_err(Error::other)?;
    let refused = GIVEN_UP.iter().map(|call| (*call, vec![])).chain([(libc::SYS_clone, vec![process])]);
    apply_filter(&filter(refused.collect(), SeccompAction::Errno(EPERM.unsigned_abs()))?).map_err(Error::other)?;
    // Its flags lie in memory, where a filter cannot look. As if the kernel did not know it: then clone is used.
    let unknown = [(libc::SYS_clone3, vec![])].into_iter().collect();
    apply_filter(&filter(unknown, SeccompAction::Errno(ENOSYS.unsigned_abs()))?).map_err(Error::other)
}
