//! Time and randomness as things handed in, so that the control plane runs in a seeded simulation.

/// Milliseconds since the Unix epoch, UTC.
pub type TimeMs = u64;

/// Where the time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Now, in milliseconds since the Unix epoch.
    fn now_ms(&self) -> TimeMs;
}

/// Where randomness comes from.
pub trait Entropy: Send + Sync + 'static {
    /// Sixteen fresh random bytes.
    fn bytes16(&self) -> [u8; 16];
}

/// A point in time as RFC 3339 UTC with milliseconds, as every JSON answer carries it.
pub fn rfc3339(at_ms: TimeMs) -> String {
    match i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) {
        Some(timestamp) => format!("{timestamp:.3}"),
        None => "9999-12-31T23:59:59.999Z".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_rfc3339_utc() {
        assert_eq!(super::rfc3339(1_763_844_000_123), "2025-11-22T20:40:00.123Z");
        assert!(super::rfc3339(u64::MAX).starts_with("9999"));
    }
}
