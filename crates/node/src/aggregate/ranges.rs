//! Cuts a job's coordinates into ranges, the unit of work and of progress.

use catchment_types::{Layout, Rule};

/// Coordinates of one range at most. A range of F32 updates is then 4 MiB each: whole huge pages, and few enough calls
/// that mapping windows costs little beside reading them.
const ELEMENTS: u64 = 1 << 20;

/// A run of coordinates within one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The segment.
    pub segment: usize,
    /// Its rule.
    pub rule: Rule,
    /// First element within the segment: a multiple of 64.
    pub first: u64,
    /// First coordinate of all.
    pub base: u64,
    /// Number of elements.
    pub elements: u64,
}

/// The ranges of a layout, in order.
pub fn cut(layout: &Layout) -> Vec<Range> {
    let mut ranges = Vec::new();
    for (segment, of) in layout.segments().iter().enumerate() {
        for first in (0..of.elements).step_by(ELEMENTS as usize) {
            let elements = ELEMENTS.min(of.elements - first);
            ranges.push(Range { segment, rule: of.rule, first, base: of.base + first, elements });
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use catchment_types::{Header, Limits};

    #[test]
    fn ranges_cover_every_coordinate_once() {
        let text = br#"{"w":{"dtype":"F32","shape":[2400000],"data_offsets":[0,9600000]},
            "h":{"dtype":"BF16","shape":[3],"data_offsets":[9600000,9600006]}}"#;
        let layout = Layout::new(&Header::parse(text, &Limits::default()).unwrap(), &[]).unwrap();
        let ranges = cut(&layout);
        let mut next = 0;
        for range in &ranges {
            assert_eq!(range.base, next);
            assert!(range.elements > 0 && range.elements <= ELEMENTS && range.first.is_multiple_of(64));
            next += range.elements;
        }
        assert_eq!((next, ranges.len()), (layout.elements(), 4));
    }
}
