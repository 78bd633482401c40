//! Sizes: where a slab's parts lie in its file, and which free file may serve which wish.
//!
//! All sums are checked here once, so that a length from outside can never wrap round into a small file under a
//! large mapping.

/// Bytes of a page: the header's size, and the unit of every size and offset in a slab file.
pub const PAGE_BYTES: u64 = 4096;

/// Bytes of a huge page.
pub const HUGE_BYTES: u64 = 2 << 20;

/// Files of data from this size on are made of huge pages where the system allows it: mapping them costs hundreds of
/// times less, and folding them a third less. Below, what their alignment wastes would not be worth it.
pub(crate) const HUGE_FROM_BYTES: u64 = 16 << 20;

/// The parts of one slab file: a header page, the control words' pages (accumulators only), the data's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    control_words: u64,
    data_len: u64,
}

impl Extent {
    /// The extent of `control_words` 8-byte words and `data_len` bytes; `None` when no file can be that large.
    pub(crate) fn new(control_words: u64, data_len: u64) -> Option<Self> {
        let control_room = control_words.checked_mul(8)?.checked_next_multiple_of(PAGE_BYTES)?;
        let data_room = data_len.max(1).checked_next_multiple_of(PAGE_BYTES)?;
        let before = PAGE_BYTES.checked_add(control_room)?.checked_next_multiple_of(HUGE_BYTES)?;
        let file_bytes = before.checked_add(data_room)?;
        (file_bytes <= i64::MAX as u64).then_some(Self { control_words, data_len })
    }

    /// 8-byte words between the header and the data.
    pub(crate) fn control_words(self) -> u64 {
        self.control_words
    }

    /// Bytes of data, as they were asked for.
    pub(crate) fn data_len(self) -> u64 {
        self.data_len
    }

    /// Bytes of the data's pages: at least one page, so that there is always something to map.
    pub(crate) fn data_room(self) -> u64 {
        self.data_len.max(1).next_multiple_of(PAGE_BYTES)
    }

    /// Where the data begins in the file; a multiple of the page, of large data a multiple of the huge page.
    pub(crate) fn data_offset(self) -> u64 {
        let after_words = PAGE_BYTES + (self.control_words * 8).next_multiple_of(PAGE_BYTES);
        if self.data_len < HUGE_FROM_BYTES { after_words } else { after_words.next_multiple_of(HUGE_BYTES) }
    }

    /// The size of a file made for this extent.
    pub(crate) fn file_bytes(self) -> u64 {
        self.data_offset() + self.data_room()
    }
}

/// The largest free file that may serve a wish for `wanted_bytes`: a quarter more, and always the next page, so
/// that a tiny wish never takes a huge file and a model's equal updates always find each other's.
pub(crate) fn recyclable_bytes_max(wanted_bytes: u64) -> u64 {
    wanted_bytes + (wanted_bytes / 4).next_multiple_of(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_on_pages_and_never_overlap() {
        for words in [0, 1, 511, 512, 513] {
            for len in [0, 1, 4095, 4096, 4097, 232_000_000] {
                let extent = Extent::new(words, len).expect("fits a file");
                assert_eq!(extent.data_offset() % PAGE_BYTES, 0);
                assert_eq!(extent.file_bytes() % PAGE_BYTES, 0);
                assert!(extent.data_offset() >= PAGE_BYTES + words * 8);
                assert!(extent.file_bytes() >= extent.data_offset() + len.max(1));
                assert!(extent.file_bytes() - extent.data_offset() - len <= PAGE_BYTES);
                assert!(len < HUGE_FROM_BYTES || extent.data_offset().is_multiple_of(HUGE_BYTES));
            }
        }
    }

    #[test]
    fn sizes_past_any_file_are_refused() {
        assert_eq!(Extent::new(0, u64::MAX), None);
        assert_eq!(Extent::new(u64::MAX, 0), None);
        assert_eq!(Extent::new(u64::MAX / 8, 1), None);
        assert_eq!(Extent::new(0, i64::MAX as u64), None);
    }

    #[test]
    fn a_tiny_wish_takes_one_page_more_at_most() {
        assert_eq!(recyclable_bytes_max(8192), 12288);
        assert_eq!(recyclable_bytes_max(400 * PAGE_BYTES), 500 * PAGE_BYTES);
    }
}
