//! Where windows go in an instance's address space. Pure arithmetic, so that it can be tested to death.

use crate::HostError;

/// What a 32-bit guest can address.
pub const GUEST_BYTES: u64 = 4 << 30;
/// Longest window: a slice in the guest is at most this long.
const WINDOW_BYTES_MAX: u64 = i32::MAX as u64;
/// Windows from this size on are placed so that the kernel can map huge pages.
const HUGE_BYTES: u64 = 2 << 20;
/// Windows of one fold at most: a batch, `acc_in` and `acc_out`. (Calls that take a whole round have more, and small
/// ones.)
const WINDOWS_MAX: u64 = catchment_sdk::abi::BATCH_MAX as u64 + 2;

/// Bytes that the windows of one call may have together, whatever their sizes and offsets, for instances whose heap is
/// capped at `heap_bytes_max`. Callers cut their ranges by it. (One window alone is at most 2 GiB − 1 byte.)
pub const fn window_bytes_max(heap_bytes_max: u64) -> u64 {
    let slack = (WINDOWS_MAX + 1) * 2 * HUGE_BYTES;
    GUEST_BYTES.saturating_sub(heap_bytes_max).saturating_sub(slack)
}

/// The part of an instance's address space that windows may use, in host addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Host address of guest address 0; a multiple of the page size.
    pub base: u64,
    /// First byte above the heap cap.
    pub low: u64,
    /// One past the last byte.
    pub high: u64,
    /// The page size.
    pub page: u64,
}

impl Area {
    /// The area of an instance at `base` whose heap is capped at `heap_bytes_max`. The last page below 4 GiB stays
    /// free, so that no address of a window's end overflows.
    pub fn new(base: u64, heap_bytes_max: u64, page: u64) -> Self {
        assert!(page.is_power_of_two() && base.is_multiple_of(page), "memory starts on a page");
        Self { base, low: base + heap_bytes_max.next_multiple_of(page), high: base + GUEST_BYTES - page, page }
    }
}

/// Where one window is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Host address of the first page.
    pub address: u64,
    /// Bytes of whole pages.
    pub len: u64,
    /// Offset of the first page in its file.
    pub offset: u64,
    /// The window's first byte as the guest sees it.
    pub guest: u32,
}

impl Place {
    /// What of it the guest can see: its first address, and one past its last.
    pub fn seen(&self, area: Area) -> (u32, u32) {
        let first = self.address - area.base;
        (first as u32, (first + self.len) as u32)
    }
}

/// Places windows of these `(offset, length)` in bytes, one after the other with an unmapped page between them.
///
/// A window of 2 MiB or more gets an address that agrees with its file offset modulo 2 MiB; otherwise the kernel could
/// not map the file's huge pages, and every fold would pay for 4 KiB ones.
pub fn place(area: Area, windows: impl Iterator<Item = (u64, u64)>) -> Result<Vec<Place>, HostError> {
    let mut places = Vec::with_capacity(WINDOWS_MAX as usize);
    let mut free = area.low;
    for (number, (offset, len)) in windows.enumerate() {
        if len == 0 || len > WINDOW_BYTES_MAX {
            let reason = format!("{len} bytes; a window has 1 to {WINDOW_BYTES_MAX}");
            return Err(HostError::argument(format!("window {number}"), reason));
        }
        if !offset.is_multiple_of(8) || offset > i64::MAX as u64 - GUEST_BYTES {
            let reason = format!("offset {offset}; it must be a multiple of 8");
            return Err(HostError::argument(format!("window {number}"), reason));
        }
        let first_page = offset - offset % area.page;
        let pages_len = (offset + len).next_multiple_of(area.page) - first_page;
        let agree = if pages_len >= HUGE_BYTES { HUGE_BYTES } else { area.page };
        // The first address from `free` on with address ≡ first_page (mod agree).
        let address = free + (first_page % agree + agree - free % agree) % agree;
        let end = address + pages_len;
        if end <= area.high {
            let guest = address - area.base + (offset - first_page);
            let guest = u32::try_from(guest).expect("below 4 GiB, because it lies in the area");
            places.push(Place { address, len: pages_len, offset: first_page, guest });
        }
        free = end + area.page;
    }
    if free - area.page > area.high {
        return Err(HostError::TooLarge {
            needed_bytes: free - area.page - area.low,
            available_bytes: area.high - area.low,
        });
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    const HEAP: u64 = 16 << 20;

    fn windows() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let len = prop_oneof![1u64..10_000, 1u64..(300 << 20), (1u64..100).prop_map(|n| n << 20)];
        prop::collection::vec(((0u64..1 << 34).prop_map(|o| o * 8), len), 1..=18)
    }

    proptest! {
        #[test]
        fn windows_lie_in_the_area_apart_and_aligned(page_number in 1u64..1 << 30, windows in windows()) {
            let area = Area::new(page_number * PAGE, HEAP, PAGE);
            let total: u64 = windows.iter().map(|w| w.1).sum();
            let Ok(places) = place(area, windows.iter().copied()) else {
                prop_assert!(total > window_bytes_max(HEAP), "{total} bytes must fit");
                return Ok(());
            };
            let mut end_before = area.low - PAGE;
            for (place, (offset, len)) in places.iter().zip(&windows) {
                prop_assert!(place.address >= end_before + PAGE && place.address + place.len <= area.high);
                prop_assert!(place.address.is_multiple_of(PAGE) && place.offset.is_multiple_of(PAGE));
                prop_assert!(place.offset <= *offset && offset + len <= place.offset + place.len);
                prop_assert!(place.len < len + 2 * PAGE);
                prop_assert_eq!(area.base + u64::from(place.guest), place.address + offset - place.offset);
                prop_assert!(place.guest.is_multiple_of(8) && u64::from(place.guest) >= HEAP);
                if *len >= HUGE_BYTES {
                    prop_assert_eq!(place.address % HUGE_BYTES, place.offset % HUGE_BYTES);
                }
                end_before = place.address + place.len;
            }
        }
    }

    #[test]
    fn refusals() {
        let area = Area::new(1 << 40, HEAP, PAGE);
        let refused = |w: &[(u64, u64)]| place(area, w.iter().copied()).unwrap_err();
        assert!(matches!(refused(&[(0, 0)]), HostError::Argument { .. }));
        assert!(matches!(refused(&[(4, 8)]), HostError::Argument { .. }));
        assert!(matches!(refused(&[(0, 1 << 31)]), HostError::Argument { .. }));
        assert!(matches!(refused(&[(u64::MAX - 7, 8)]), HostError::Argument { .. }));
        let HostError::TooLarge { needed_bytes, available_bytes } = refused(&[(0, (1 << 31) - 8); 3]) else { panic!() };
        assert!(needed_bytes > 3 * ((1 << 31) - 8) && available_bytes < 4 << 30);
        assert_eq!(place(area, [(0, (1 << 31) - 8), (0, 1 << 30)].into_iter()).unwrap().len(), 2);
    }
}
