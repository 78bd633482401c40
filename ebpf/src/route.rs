//! Routes descriptors from the node's uplink to runners.
//!
//! `route` runs for every message that a node writes to its uplink. It hands each descriptor to the socket of the
//! runner that serves its route, without a process in between, and counts it.
#![no_std]
#![no_main]

mod program;
mod shared;

use crate::shared::{Count, DESCRIPTOR_BYTES, ROUTES_MAX, RUNNERS_MAX, SLOW, Target};
use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::helpers::{bpf_msg_apply_bytes, bpf_msg_pull_data};
use aya_ebpf::macros::{map, sk_msg};
use aya_ebpf::maps::{HashMap, PerCpuArray, SockHash};
use aya_ebpf::programs::SkMsgContext;

/// Where each route goes.
#[map]
static ROUTES: HashMap<u64, Target> = HashMap::with_max_entries(ROUTES_MAX, 0);

/// What went along it.
#[map]
static COUNTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(ROUTES_MAX, 0);

/// The runners' sockets, and under [`SLOW`] that of the slow path. One that closes leaves the map by itself.
#[map]
static RUNNERS: SockHash<u32> = SockHash::with_max_entries(RUNNERS_MAX + 2, 0);

/// The node's sending socket, to which `route` is attached.
#[map]
static UPLINK: SockHash<u32> = SockHash::with_max_entries(2, 0);

/// Byte at which a descriptor names its payload's length.
const LENGTH_AT: usize = 40;

/// Decides about one descriptor. It never drops: a refused message would leave the sending socket refusing for good.
/// What has no runner goes to the node's slow path, which is also the uplink's TCP peer. It has to be sent there: in a
/// write of several descriptors, letting one pass means to the kernel that it goes where the one before it went.
#[sk_msg]
pub fn route(message: SkMsgContext) -> u32 {
    let size = message.size() as usize;
    let part = if size < DESCRIPTOR_BYTES { size } else { DESCRIPTOR_BYTES };
    if size != DESCRIPTOR_BYTES {
        // The verdict is for these bytes only, and the program runs again for the rest. What the run before said about
        // its own bytes would hold for this one, too.
        // SAFETY: the context is the one the kernel called with.
        unsafe { bpf_msg_apply_bytes(message.msg, part as u32) };
    }
    if part < DESCRIPTOR_BYTES || redirect(&message).is_none() {
        RUNNERS.redirect_msg(&message, SLOW, BPF_F_INGRESS as u64);
    }
    SK_PASS
}

/// Redirects the message's first descriptor if it can.
#[inline(always)]
fn redirect(message: &SkMsgContext) -> Option<()> {
    let mut start = message.data();
    if start + DESCRIPTOR_BYTES > message.data_end() {
        // It lies across two pages: have it copied together.
        // SAFETY: the context is the one the kernel called with.
        if unsafe { bpf_msg_pull_data(message.msg, 0, DESCRIPTOR_BYTES as u32, 0) } != 0 {
            return None;
        }
        start = message.data();
        if start + DESCRIPTOR_BYTES > message.data_end() {
            return None;
        }
    }
    // SAFETY: both reads lie in the descriptor, which lies before `data_end`; the verifier checks it, too.
    let (route, length) =
        unsafe { ((start as *const u64).read_unaligned(), ((start + LENGTH_AT) as *const u64).read_unaligned()) };
    // SAFETY: the node changes the map only while it sends nothing, so the value stays whole while it is read.
    let target = *unsafe { ROUTES.get(&route) }?;
    if RUNNERS.redirect_msg(message, target.runner, BPF_F_INGRESS as u64) != SK_PASS as i64 {
        return None;
    }
    if let Some(count) = COUNTS.get_ptr_mut(target.slot) {
        // SAFETY: the value is this CPU's own, and programs of this type are not interrupted by each other on it.
        unsafe {
            (*count).descriptors += 1;
            (*count).payload_bytes = (*count).payload_bytes.wrapping_add(length);
        }
    }
    Some(())
}
