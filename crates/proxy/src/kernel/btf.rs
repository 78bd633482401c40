//! Where a field lies in a structure of the running kernel, from the kernel's own description of its types (BTF,
//! `/sys/kernel/btf/vmlinux`; the format is in the kernel's `Documentation/bpf/btf.rst`).

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Members that are structures without a name, one in the other.
const DEPTH_MAX: u32 = 8;

/// A parsed description.
pub(super) struct Btf<'a> {
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

struct Type<'a> {
    name: u32,
    kind: u32,
    /// Whether members' offsets share their word with a bit field's size.
    packed: bool,
    members: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Reads a description of this machine's byte order.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes(*bytes.first_chunk()?) != MAGIC {
            return None;
        }
        let head = |at| word(bytes, at).map(|value| value as usize);
        let (head_len, types_at, types_len, strings_at, strings_len) =
            (head(4)?, head(8)?, head(12)?, head(16)?, head(20)?);
        let body = bytes.get(head_len..)?;
        let strings = body.get(strings_at..strings_at.checked_add(strings_len)?)?;
        let mut rest = body.get(types_at..types_at.checked_add(types_len)?)?;
        let mut types = vec![Type { name: 0, kind: 0, packed: false, members: &[] }];
        while !rest.is_empty() {
            let (name, info) = (word(rest, 0)?, word(rest, 4)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let tail = 12 + tail_len(kind, count)?;
            types.push(Type { name, kind, packed: info >> 31 == 1, members: rest.get(12..tail)? });
            rest = &rest[tail..];
        }
        Some(Self { types, strings })
    }

    /// Offset in bytes of a field, named by its way through nested structures.
    pub(super) fn offset(&self, structure: &str, path: &[&str]) -> Option<u64> {
        let named = |found: &&Type<'_>| found.kind == STRUCT && self.name(found.name) == Some(structure.as_bytes());
        let mut at = self.types.iter().find(named)?;
        let mut offset = 0;
        for field in path {
            let (bits, inner) = self.member(at, field, DEPTH_MAX)?;
            offset += u64::from(bits / 8);
            at = inner;
        }
        Some(offset)
    }

    /// A member's offset in bits, and its type; also one of a structure without a name inside.
    fn member(&self, within: &Type<'a>, field: &str, depth: u32) -> Option<(u32, &Type<'a>)> {
        if depth == 0 || !matches!(within.kind, STRUCT | UNION) {
            return None;
        }
        within.members.chunks_exact(12).find_map(|member| {
            let (name, inner, offset) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            let bits = if within.packed { offset & 0xff_ffff } else { offset };
            let inner = self.types.get(inner as usize)?;
            match self.name(name)? {
                name if name == field.as_bytes() => Some((bits, inner)),
                b"" => self.member(inner, field, depth - 1).map(|(more, inner)| (bits + more, inner)),
                _ => None,
            }
        })
    }

    fn name(&self, at: u32) -> Option<&'a [u8]> {
        self.strings.get(at as usize..)?.split(|byte| *byte == 0).next()
    }
}

/// Bytes behind a type's first twelve.
fn tail_len(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        2 | 7..=12 | 16 | 18 => 0,
        1 | 14 | 17 => 4,
        3 => 12,
        STRUCT | UNION | 15 | 19 => 12 * count,
        6 | 13 => 8 * count,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct task { struct { int a; int b; }; struct info { int x; int y; } i; }`, each int of four bytes.
    fn example() -> Vec<u8> {
        let strings = b"\0task\0a\0b\0info\0x\0y\0i\0int\0";
        let int = [22u32, 1 << 24, 4, 32];
        let unnamed = [0, STRUCT << 24 | 2, 8, 6, 1, 0, 8, 1, 32];
        let info = [10, STRUCT << 24 | 2, 8, 15, 1, 0, 17, 1, 32];
        let task = [1, STRUCT << 24 | 2, 16, 0, 2, 0, 19, 3, 64];
        let types: Vec<u32> = [&int[..], &unnamed, &info, &task].concat();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for value in [24, 0, 4 * types.len() as u32, 4 * types.len() as u32, strings.len() as u32].iter().chain(&types)
        {
            bytes.extend(value.to_ne_bytes());
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn fields_are_found_through_named_and_unnamed_structures() {
        let bytes = example();
        let btf = Btf::parse(&bytes).expect("a description");
        assert_eq!(btf.offset("task", &["a"]), Some(0));
        assert_eq!(btf.offset("task", &["b"]), Some(4));
        assert_eq!(btf.offset("task", &["i", "y"]), Some(12));
        assert_eq!(btf.offset("task", &["y"]), None);
        assert_eq!(btf.offset("tasks", &["a"]), None);
        assert_eq!(btf.offset("task", &["a", "b"]), None);
    }

    proptest! {
        #[test]
        fn damage_is_no_panic(at in 0usize..200, byte: u8, length in 0usize..220) {
            let mut bytes = example();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(length);
            if let Some(btf) = Btf::parse(&bytes) {
                btf.offset("task", &["i", "y"]);
                btf.offset("task", &["b"]);
            }
        }
    }
}
