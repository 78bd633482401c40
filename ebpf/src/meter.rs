//! CPU time and run-queue delay of metered processes.
//!
//! `switched` runs at every context switch. When a thread of a metered process is switched out, the time since it was
//! switched in is its slice, and the kernel's own sum of its waiting tells what it waited for that slice. What concerns
//! no metered process is passed over within a few instructions.
#![no_std]
#![no_main]

mod program;
mod shared;

use crate::shared::{FILTER_WORDS, METERED_MAX, Machine, Slice, Time};
use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::generated::{bpf_get_ns_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, PerCpuArray, PerCpuHashMap};
use aya_ebpf::programs::BtfTracePointContext;

/// What metered processes used, by the number under which the node knows them.
#[map]
static TIMES: PerCpuHashMap<u32, Time> = PerCpuHashMap::with_max_entries(METERED_MAX, 0);

/// What runs on each CPU.
#[map]
static SLICES: PerCpuArray<Slice> = PerCpuArray::with_max_entries(1, 0);

/// A bit for each process that may be metered, by the end of its number.
#[map]
static FILTER: Array<[u64; FILTER_WORDS]> = Array::with_max_entries(1, 0);

/// The loader sets it, so the compiler must not take the zeros for granted.
#[unsafe(no_mangle)]
static MACHINE: Machine = Machine { process_at: 0, queued_at: 0, namespace_device: 0, namespace_inode: 0 };

/// `sched_switch(preempt, previous, next, …)`, while `previous` is still the current task.
#[btf_tracepoint(function = "sched_switch")]
pub fn switched(context: BtfTracePointContext) -> i32 {
    let (previous, next): (*const u8, *const u8) = (context.arg(1), context.arg(2));
    account(previous, next);
    0
}

#[inline(always)]
fn account(previous: *const u8, next: *const u8) -> Option<()> {
    let (filter, slice) = (FILTER.get(0)?, SLICES.get_ptr_mut(0)?);
    let (from, to) = (process(previous), process(next));
    let (left, entered) = (may_be_metered(filter, from), may_be_metered(filter, to));
    // SAFETY: the value is this CPU's own, and a context switch is not interrupted by another.
    let slice = unsafe { &mut *slice };
    if left || entered {
        // SAFETY: no precondition.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        if left && slice.start_ns != 0 {
            end(slice, previous, from, now_ns);
        }
        if entered {
            *slice = Slice { start_ns: now_ns, queued_before_ns: queued_ns(next), process: to as u64 };
            return Some(());
        }
    }
    (slice.start_ns, slice.process) = (0, to as u64);
    Some(())
}

/// Counts a slice that ends.
#[inline(always)]
fn end(slice: &Slice, task: *const u8, process: u32, now_ns: u64) -> Option<()> {
    let time = TIMES.get_ptr_mut(known(process)?)?;
    // SAFETY: the value is this CPU's own, and a context switch is not interrupted by another.
    let time = unsafe { &mut *time };
    time.on_cpu_ns += now_ns - slice.start_ns;
    time.queued_ns += queued_ns(task).saturating_sub(slice.queued_before_ns);
    time.process = process as u64;
    Some(())
}

/// Whether it is worth a closer look.
#[inline(always)]
fn may_be_metered(filter: &[u64; FILTER_WORDS], process: u32) -> bool {
    process != 0 && filter[process as usize / 64 % FILTER_WORDS] >> (process % 64) & 1 == 1
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
fn process(task: *const u8) -> u32 {
    // SAFETY: the kernel hands over tasks that are alive, and the verifier knows their fields.
    unsafe { *task.add(set(&MACHINE.process_at) as usize).cast() }
}

#[inline(always)]
fn queued_ns(task: *const u8) -> u64 {
    // SAFETY: as above.
    unsafe { *task.add(set(&MACHINE.queued_at) as usize).cast() }
}

/// A value that the loader sets; the compiler must not take the zero for granted.
#[inline(always)]
fn set(value: &'static u64) -> u64 {
    // SAFETY: a reference is valid to read.
    unsafe { core::ptr::read_volatile(value) }
}
