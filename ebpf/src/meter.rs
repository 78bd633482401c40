//! CPU time and run-queue delay of metered processes.
//!
//! `switched` runs at every context switch. When a thread is switched out, the time since it was switched in is its
//! slice, and the kernel's own sum of its waiting tells what it waited for that slice.
#![no_std]
#![no_main]

mod program;
mod shared;

use crate::shared::{METERED_MAX, Machine, Slice, Time};
use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_ns_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{PerCpuArray, PerCpuHashMap};
use aya_ebpf::programs::RawTracePointContext;

/// What metered processes used, by the number under which the node knows them.
#[map]
static TIMES: PerCpuHashMap<u32, Time> = PerCpuHashMap::with_max_entries(METERED_MAX, 0);

/// What runs on each CPU.
#[map]
static SLICES: PerCpuArray<Slice> = PerCpuArray::with_max_entries(1, 0);

/// The loader sets it, so the compiler must not take the zeros for granted.
#[unsafe(no_mangle)]
static MACHINE: Machine = Machine { process_at: 0, queued_at: 0, namespace_device: 0, namespace_inode: 0 };

/// `sched_switch(preempt, previous, next, …)`, while `previous` is still the current task.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn switched(context: RawTracePointContext) -> i32 {
    account(&context);
    0
}

#[inline(always)]
fn account(context: &RawTracePointContext) -> Option<()> {
    let slice = SLICES.get_ptr_mut(0)?;
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let process = bpf_get_current_pid_tgid() >> 32;
    if process != 0
        && let Some(time) = known(process as u32).and_then(|number| TIMES.get_ptr_mut(number))
    {
        // SAFETY: both values are this CPU's own, and a context switch is not interrupted by another.
        unsafe {
            // The first switch that the program sees on a CPU has no beginning.
            if (*slice).start_ns != 0 && (*slice).process == process {
                let queued_ns = queued_ns(bpf_get_current_task());
                (*time).on_cpu_ns += now_ns - (*slice).start_ns;
                (*time).queued_ns += queued_ns.saturating_sub((*slice).queued_before_ns);
            }
            (*time).process = process;
        }
    }
    let next: u64 = context.arg(2);
    let process = process_of(next);
    // SAFETY: as above.
    unsafe {
        (*slice).start_ns = now_ns;
        (*slice).process = process;
        if process != 0 {
            (*slice).queued_before_ns = queued_ns(next);
        }
    }
    Some(())
}

/// Under which number the node knows the current process, if it can see it.
#[inline(always)]
fn known(process: u32) -> Option<u32> {
    let (device, inode) = (set(&MACHINE.namespace_device), set(&MACHINE.namespace_inode));
    if inode == 0 {
        return Some(process);
    }
    let mut info = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the size is that of what is written to.
    let found = unsafe { bpf_get_ns_current_pid_tgid(device, inode, &mut info, size_of::<bpf_pidns_info>() as u32) };
    (found == 0).then_some(info.tgid)
}

#[inline(always)]
fn process_of(task: u64) -> u64 {
    // SAFETY: a read of kernel memory that fails, instead of faulting, where there is none.
    let tgid: Result<u32, _> = unsafe { bpf_probe_read_kernel((task + set(&MACHINE.process_at)) as *const u32) };
    tgid.unwrap_or(0) as u64
}

#[inline(always)]
fn queued_ns(task: u64) -> u64 {
    // SAFETY: a read of kernel memory that fails, instead of faulting, where there is none.
    let queued: Result<u64, _> = unsafe { bpf_probe_read_kernel((task + set(&MACHINE.queued_at)) as *const u64) };
    queued.unwrap_or(0)
}

/// A value that the loader sets; the compiler must not take the zero for granted.
#[inline(always)]
fn set(value: &'static u64) -> u64 {
    // SAFETY: a reference is valid to read.
    unsafe { core::ptr::read_volatile(value) }
}
