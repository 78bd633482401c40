//! Tasks in clients' hands.

use catchment_types::{ClientId, TimeMs};
use std::collections::HashMap;

/// How often tasks that are done or overdue are looked for. Until then they take a place too many, never one too few.
const PRUNE_MS: u64 = 100;

/// A task in a client's hands.
#[derive(Debug, Clone, Copy)]
struct Held {
    since_ms: TimeMs,
    until_ms: TimeMs,
    /// Given before everybody else, to a client that was too late for the round before.
    is_spared: bool,
}

/// The tasks of one kind and round that are out.
#[derive(Debug, Default)]
pub struct Hands {
    held: HashMap<ClientId, Held>,
    pruned_ms: TimeMs,
}

impl Hands {
    pub fn len(&self) -> u64 {
        self.held.len() as u64
    }

    pub fn give(&mut self, client: &ClientId, now_ms: TimeMs, until_ms: TimeMs, is_spared: bool) {
        self.held.insert(client.clone(), Held { since_ms: now_ms, until_ms, is_spared });
    }

    /// Takes it back, if it is out.
    pub fn take(&mut self, client: &ClientId) {
        self.held.remove(client);
    }

    /// Whether the client has a task; then it has it until `until_ms` from now on.
    pub fn renew(&mut self, client: &ClientId, now_ms: TimeMs, until_ms: TimeMs) -> bool {
        match self.held.get_mut(client) {
            Some(held) if held.until_ms > now_ms => {
                held.until_ms = until_ms;
                true
            }
            _ => false,
        }
    }

    /// Takes back what is done or overdue.
    pub fn prune(&mut self, now_ms: TimeMs, is_done: impl Fn(&ClientId) -> bool) {
        if now_ms.abs_diff(self.pruned_ms) >= PRUNE_MS {
            self.pruned_ms = now_ms;
            self.held.retain(|client, held| held.until_ms > now_ms && !is_done(client));
        }
    }

    /// Takes everything back. Gives who had what, since when, and whether it was spared.
    pub fn drain(&mut self) -> impl Iterator<Item = (ClientId, TimeMs, bool)> + use<> {
        std::mem::take(&mut self.held).into_iter().map(|(client, held)| (client, held.since_ms, held.is_spared))
    }
}
