//! Whose bytes a file holds.
//!
//! Files are used again and again, because the first touch of a page is dear, and accumulators are mapped for writing
//! before anybody has written them. So what an earlier use left there can be read. Within one owner that does no harm.
//! A file that another owner used last is overwritten with zeros before it is granted.

/// A tag of whoever a use of a file is for. The store only compares it: two uses with the same tag may see each other's
/// bytes, all others never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner([u8; 32]);

impl Owner {
    /// The owner with this tag. It must be another one for everybody who may not read what this one wrote.
    pub const fn new(tag: [u8; 32]) -> Self {
        Self(tag)
    }
}
