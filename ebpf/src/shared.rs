//! What the kernel programs and `catchment-proxy` both know: the maps' names, sizes and values.
#![allow(dead_code, reason = "each program uses its part")]

/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: usize = 64;
/// Routes at one time.
pub const ROUTES_MAX: u32 = 4096;
/// Runners at one time.
pub const RUNNERS_MAX: u32 = 1024;
/// Key in `RUNNERS` of the node's own slow path; no runner has this number.
pub const SLOW: u32 = u32::MAX;
/// Key that is never in `RUNNERS`: the target of a route that waits to be placed again.
pub const NOBODY: u32 = u32::MAX - 1;
/// Metered processes at one time.
pub const METERED_MAX: u32 = 1024;

/// Words of `FILTER`.
pub const FILTER_WORDS: usize = 64;

/// Value of `ROUTES`: where a route's descriptors go and are counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Key in `RUNNERS`.
    pub runner: u32,
    /// Index in `COUNTS`.
    pub slot: u32,
}

/// Value of `COUNTS`: what went along a route, for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Descriptors that were redirected.
    pub descriptors: u64,
    /// Payload bytes that they named.
    pub payload_bytes: u64,
}

/// What the loader knows of this machine, set in the program before it is loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Where a task's process number lies, in bytes.
    pub process_at: u64,
    /// Where the sum of a task's waiting lies.
    pub queued_at: u64,
    /// Device and inode of the node's pid namespace, or zeros where that is the machine's own.
    pub namespace_device: u64,
    /// See there.
    pub namespace_inode: u64,
}

/// Value of `SLICES`: what runs on a CPU since when.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// When it was switched in, in nanoseconds of the monotonic clock; 0: it is not metered.
    pub start_ns: u64,
    /// What its thread had waited for a CPU in all its life before this slice.
    pub queued_before_ns: u64,
    /// The process, as the kernel numbers it.
    pub process: u64,
}

/// Value of `TIMES`: what a metered process used and waited for, for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Nanoseconds on the CPU, in slices that ended.
    pub on_cpu_ns: u64,
    /// Nanoseconds ready to run and waiting.
    pub queued_ns: u64,
    /// The process, as the kernel numbers it: other than its key where that is a number of a container's.
    pub process: u64,
}
