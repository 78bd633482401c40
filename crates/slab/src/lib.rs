//! Shared-memory slabs: where an update lies from the socket to the fold.
//!
//! # Why it exists
//!
//! An update is received once, into the place where a function will read it, and is never copied or sent again.
//! That place must be shared between processes (gateway, runners), must be read-only for all who did not write it,
//! must outlive every one of them (a 202 is a promise), and must not cost a page fault per page and update. A slab
//! is a named file on a tmpfs that does all four. Without this crate every update would be copied between
//! processes, and a killed node would lose what it had accepted.
//!
//! # The life of a slab
//!
//! ```text
//!            grant                freeze                 release, last handle dropped
//!   (none) ─────────▶  SlabMut  ─────────▶  Slab(s)  ─────────────────────────────────▶ free ──▶ (unlinked)
//!      ▲                  │ dropped                                                      │  trim, or room needed
//!      └──────────────────┴───────────────────── grant, next generation ────────────────┘
//! ```
//!
//! * [`SlabStore::grant`] gives a [`SlabMut`], the one writer. Dropping it (the client hung up) frees it.
//! * [`SlabMut::freeze`] ends writing and makes it a [`Slab`] with its metadata, kept by the store itself: handles
//!   may come and go, a process may die, [`SlabStore::open`] finds it again.
//! * [`SlabStore::release`] is the only way to lose it.
//! * An [`Accumulator`] is the same memory with control words that survive `kill -9`; it is kept from the start.
//!
//! ```
//! use catchment_slab::{Owner, SlabStore, StoreConfig};
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path().join("slabs");
//! let config = StoreConfig { dir, budget_bytes: 1 << 20 };
//! let (store, _) = SlabStore::open(config.clone())?;
//! let mut granted = store.grant(Owner::new([7; 32]), 5)?;
//! granted.bytes_mut().copy_from_slice(b"delta");
//! let id = granted.freeze(b"client 7, round 3")?.id();
//! drop(store); // or die
//!
//! let (store, recovered) = SlabStore::open(config)?;
//! assert_eq!(recovered.slabs[0].bytes()?, b"delta");
//! assert_eq!(recovered.slabs[0].meta(), b"client 7, round 3");
//! drop(recovered);
//! assert!(store.release(id) && store.get(id).is_none());
//! assert_eq!(store.usage().in_use_bytes(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is in the directory
//!
//! * `store`: the lock, the incarnation, and how far indexes have been used.
//! * `in-use`: the lock that is handed to other processes ([`SlabStore::lock`]).
//! * `<index, 8 hex digits>.slab`: a header page, then an accumulator's control words, then the data; each part
//!   begins on a page. The header page ends with up to [`META_BYTES_MAX`] bytes of the owner's metadata and is
//!   covered by a checksum, but for its state word.
//!
//! **Recovery.** The header with the new generation is written as `writing` before an id is given out; at freezing it
//! is written again with metadata and checksum; then the state word, alone, turns to `kept`. Each is one `pwrite`
//! inside one page, so a kill falls before or after it. At release the word turns to `free` before anyone may reuse
//! the file. A restart thus keeps exactly what was frozen and not released. It reclaims the rest, removes damaged
//! files of ours with a warning, leaves foreign names alone with a warning, and refuses to start, unchanged, on
//! files of a newer version.
//!
//! **Names never repeat.** A file keeps its index for life, and each use of it adds one to the generation in its
//! header, from 1. An index whose file is unlinked, or that has reached its last generation, never names another
//! file: `store` records the next unused index before it is used. When the machine's memory is lost the record is
//! lost with it; [`SlabStore::incarnation`] tells the difference.
//!
//! # Choices
//!
//! * **Blocks are set aside when a file is made.** A full tmpfs raises SIGBUS at the first touch of a page; here it is
//!   [`SlabError::NoRoom`] at the grant. The store first gives up its own free files.
//! * **A grant enters all its pages at once,** so that the writer meets no page faults; so it blocks for milliseconds, and
//!   belongs on a thread that may block.
//! * **Free files are reused,** by a wish that needs at least four fifths of them, because the first touch of a page is
//!   dear. Files are exact to the page, no powers of two: a model's updates are all of one size, and tiny ones cost
//!   two pages. When room is needed, the free file that best covers the shortfall goes.
//! * **Large files are made of huge pages** (`MADV_COLLAPSE`, which works on a tmpfs whatever its setting), once, because
//!   files are reused: their data begins on a huge page, and so mapping them costs next to nothing. Where the kernel
//!   refuses they stay as they are.
//! * **The bytes of another use of the same [`Owner`] may still be there.** [`SlabMut::bytes_mut`] and an accumulator's
//!   data are not cleared then; only the rest of a slab's last page is, as windows show whole pages. A file that another
//!   owner used last is overwritten with zeros before it is granted. Who used a file last is not written down, so after
//!   a restart every file counts as another's.
//! * **A file is for updates or for accumulators, in all its uses.** Accumulators are handed to other processes for
//!   writing, and who had one may still have it open: an update never lies where it could be written.
//! * **Readers get a descriptor opened read-only.** The kernel refuses `PROT_WRITE` on it, also by `mprotect`. A process
//!   of the same user could open it anew through `/proc`, so runners have another user, and files are 0600.
//! * **No seals:** the kernel refuses them on named files, and memfds die with their last holder.
//! * **Descriptors and mappings are lent, not kept.** Free and frozen slabs cost none; a [`Slab`] opens them when asked
//!   and drops them with its last clone. Tens of thousands may wait under a limit of a thousand descriptors.
//! * **The books see handles of this process only.** Whoever hands a descriptor to another process keeps a [`Slab`]
//!   until that process is done, and ends left-over readers before the first grant after a restart.
//!
//! The tmpfs keeps slabs through the death of every process, not through a loss of power or of the container's
//! memory volume.

mod accumulator;
mod directory;
mod error;
mod extent;
mod header;
mod map;
mod owner;
mod record;
mod recover;
mod shared;
mod slab;
mod store;
mod table;

pub use accumulator::Accumulator;
pub use catchment_types::SlabId;
pub use error::SlabError;
pub use extent::{HUGE_BYTES, PAGE_BYTES};
pub use header::META_BYTES_MAX;
pub use owner::Owner;
pub use slab::{Slab, SlabMut, SlabReader};
pub use store::{CONTROL_WORDS_MAX, Recovered, SlabStore, StoreConfig};
pub use table::Usage;
