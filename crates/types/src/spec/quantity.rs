//! Durations as people write them: `"500ms"`, `"60s"`, `"10m"`, `"24h"`, `"7d"`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A duration, written as a whole number and a unit: ms, s, m, h or d.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DurationText {
    ms: u64,
}

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl DurationText {
    /// A duration of this many milliseconds.
    pub const fn from_ms(ms: u64) -> Self {
        Self { ms }
    }

    /// Its milliseconds.
    pub const fn ms(self) -> u64 {
        self.ms
    }
}

impl FromStr for DurationText {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .and_then(|(_, ms)| number.parse::<u64>().ok()?.checked_mul(*ms))
            .map(Self::from_ms)
            .ok_or_else(|| "a duration is a whole number and a unit (ms, s, m, h, d), like \"60s\"".to_owned())
    }
}

impl TryFrom<String> for DurationText {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DurationText> for String {
    fn from(duration: DurationText) -> Self {
        duration.to_string()
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, ms) =
            UNITS.iter().find(|(_, ms)| self.ms.is_multiple_of(*ms) && self.ms >= *ms).unwrap_or(&("ms", 1));
        write!(f, "{}{unit}", self.ms / ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write() {
        for (text, ms) in
            [("0ms", 0), ("250ms", 250), ("60s", 60_000), ("10m", 600_000), ("24h", 86_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(text.parse::<DurationText>().unwrap().ms(), ms);
        }
        assert_eq!(DurationText::from_ms(90_000).to_string(), "90s");
        assert_eq!(DurationText::from_ms(86_400_000).to_string(), "1d");
        for bad in ["", "60", "s", "1.5s", "-1s", "1 s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(bad.parse::<DurationText>().is_err(), "{bad}");
        }
    }
}
