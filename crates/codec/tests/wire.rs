//! The bytes are a contract: golden bytes, round trips, and hostile input.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use catchment_codec::{CodecError, Nothing, Stored, WIRE_BYTES_MAX, first_version};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const LIMIT_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Outcome {
    Waiting,
    Folded(u64),
    Moved(u16, bool),
    Discarded { code: String, index: Option<u32> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Name(String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    sequence: u64,
    offset: i64,
    weight: f64,
    small: (u8, i8, u16, f32, char),
    digest: [u8; 32],
    client: Name,
    note: Option<String>,
    none: Option<u8>,
    outcomes: Vec<Outcome>,
    counts: BTreeMap<String, u32>,
    unit: (),
}

first_version!(Outcome, Record);

/// Any value as a message of its own.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Alone<T>(T);

impl<T: Serialize + DeserializeOwned> Stored for Alone<T> {
    const VERSION: u8 = 1;
    type Before = Nothing;
}

impl<T> From<Nothing> for Alone<T> {
    fn from(nothing: Nothing) -> Self {
        match nothing {}
    }
}

fn encode<T: Serialize + DeserializeOwned + Clone>(value: &T, limit_bytes: usize) -> Result<Vec<u8>, CodecError> {
    catchment_codec::encode(&Alone(value.clone()), limit_bytes)
}

fn decode<T: Serialize + DeserializeOwned>(message: &[u8], limit_bytes: usize) -> Result<T, CodecError> {
    catchment_codec::decode::<Alone<T>>(message, limit_bytes).map(|Alone(value)| value)
}

fn sample() -> Record {
    Record {
        sequence: 0x0102_0304_0506_0708,
        offset: -2,
        weight: 1.5,
        small: (7, -1, 0x0102, -0.5, 'é'),
        digest: std::array::from_fn(|i| i as u8),
        client: Name("ann".to_owned()),
        note: Some("ok".to_owned()),
        none: None,
        outcomes: vec![
            Outcome::Waiting,
            Outcome::Folded(9),
            Outcome::Moved(3, true),
            Outcome::Discarded { code: "layout".to_owned(), index: Some(1) },
        ],
        counts: BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]),
        unit: (),
    }
}

/// Written out by hand from the format's description: it must never change within a wire version.
fn golden() -> Vec<u8> {
    let mut bytes = vec![1]; // wire version
    bytes.extend([0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01]); // sequence
    bytes.extend([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]); // offset
    bytes.extend([0, 0, 0, 0, 0, 0, 0xf8, 0x3f]); // weight
    bytes.extend([7, 0xff, 0x02, 0x01, 0, 0, 0, 0xbf, 0xc3, 0xa9]); // small
    bytes.extend(0..32); // digest: no length
    bytes.extend([3, 0, 0, 0, 0, 0, 0, 0, b'a', b'n', b'n']); // client: a newtype is its inside
    bytes.extend([1, 2, 0, 0, 0, 0, 0, 0, 0, b'o', b'k']); // note
    bytes.extend([0]); // none
    bytes.extend([4, 0, 0, 0, 0, 0, 0, 0]); // outcomes
    bytes.extend([0, 0, 0, 0]);
    bytes.extend([1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([2, 0, 0, 0, 3, 0, 1]);
    bytes.extend([3, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(b"layout");
    bytes.extend([1, 1, 0, 0, 0]);
    bytes.extend([2, 0, 0, 0, 0, 0, 0, 0]); // counts
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, b'a', 1, 0, 0, 0]);
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, b'b', 2, 0, 0, 0]);
    bytes
}

#[test]
fn golden_bytes() {
    assert_eq!(encode(&sample(), LIMIT_BYTES).unwrap(), golden());
    assert_eq!(decode::<Record>(&golden(), LIMIT_BYTES).unwrap(), sample());
}

#[test]
fn the_limit_holds_both_ways_and_exactly() {
    let golden = golden();
    assert_eq!(encode(&sample(), golden.len()).unwrap(), golden);
    assert!(decode::<Record>(&golden, golden.len()).is_ok());
    for limit_bytes in [0, 1, 2, golden.len() - 1] {
        assert!(matches!(
            encode(&sample(), limit_bytes),
            Err(CodecError::TooLarge { limit_bytes: l, .. }) if l == limit_bytes
        ));
        assert!(matches!(decode::<Record>(&golden, limit_bytes), Err(CodecError::TooLarge { .. })));
    }
}

#[test]
fn no_caller_can_lift_the_largest_size() {
    let huge = "x".repeat(WIRE_BYTES_MAX);
    assert!(matches!(
        encode(&huge, usize::MAX),
        Err(CodecError::TooLarge { limit_bytes, .. }) if limit_bytes == WIRE_BYTES_MAX
    ));
    assert!(matches!(decode::<String>(&vec![1; WIRE_BYTES_MAX + 1], usize::MAX), Err(CodecError::TooLarge { .. })));
    // The largest text there can be: version byte and length take nine bytes.
    let largest = "x".repeat(WIRE_BYTES_MAX - 9);
    let message = encode(&largest, usize::MAX).unwrap();
    assert_eq!(message.len(), WIRE_BYTES_MAX);
    assert_eq!(decode::<String>(&message, usize::MAX).unwrap(), largest);
}

#[test]
fn every_size_class_round_trips() {
    for len in [0, 4087, 4088, 4089, 5000, 262_135, 262_136, 262_137, 1 << 20] {
        let text = "y".repeat(len);
        let message = encode(&text, WIRE_BYTES_MAX).unwrap();
        assert_eq!(decode::<String>(&message, WIRE_BYTES_MAX).unwrap(), text);
    }
}

#[test]
fn versions_and_leftovers_are_named() {
    assert!(matches!(decode::<u8>(&[], LIMIT_BYTES), Err(CodecError::Empty { .. })));
    let error = decode::<u8>(&[9, 1], LIMIT_BYTES).unwrap_err();
    assert!(matches!(error, CodecError::UnknownVersion { found: 9, newest: 1, .. }), "{error}");
    assert!(error.to_string().contains("version 9"), "{error}");
    let left = decode::<u8>(&[1, 1, 1, 1], LIMIT_BYTES);
    assert!(matches!(left, Err(CodecError::TrailingBytes { left_bytes: 2, .. })), "{left:?}");
}

/// A type with a past: what each of its releases wrote is read, and nothing else.
#[test]
fn older_forms_are_read_one_after_the_other() {
    #[derive(Serialize, Deserialize)]
    struct First(u8);
    #[derive(Serialize, Deserialize)]
    struct Third(u16);
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Fourth(u16, String);

    first_version!(First);
    impl Stored for Third {
        // There was a second one that nobody reads any more, and that therefore no other may be taken for.
        const VERSION: u8 = 3;
        type Before = First;
    }
    impl From<First> for Third {
        fn from(First(value): First) -> Self {
            Self(value.into())
        }
    }
    impl Stored for Fourth {
        const VERSION: u8 = 4;
        type Before = Third;
    }
    impl From<Third> for Fourth {
        fn from(Third(value): Third) -> Self {
            Self(value, "from the third".to_owned())
        }
    }

    let read = |message: &[u8]| catchment_codec::decode::<Fourth>(message, LIMIT_BYTES);
    let from_third = |value| Ok(Fourth(value, "from the third".to_owned()));
    assert_eq!(read(&catchment_codec::encode(&First(7), LIMIT_BYTES).unwrap()), from_third(7));
    assert_eq!(read(&catchment_codec::encode(&Third(700), LIMIT_BYTES).unwrap()), from_third(700));
    let newest = catchment_codec::encode(&Fourth(1, "x".to_owned()), LIMIT_BYTES).unwrap();
    assert_eq!((newest[0], read(&newest)), (4, Ok(Fourth(1, "x".to_owned()))));
    for unknown in [0, 2, 5, 255] {
        let error = read(&[unknown, 1, 0]).unwrap_err();
        assert!(matches!(error, CodecError::UnknownVersion { found, newest: 4, .. } if found == unknown), "{error}");
        assert!(error.to_string().contains("Fourth"), "{error}");
    }
    assert!(matches!(read(&[1, 7, 7]), Err(CodecError::TrailingBytes { left_bytes: 1, .. })));
}

#[test]
fn a_lying_length_is_refused_before_it_allocates() {
    for claimed in [5000_u64, 1 << 24, 1 << 40, u64::MAX] {
        let mut message = vec![1];
        message.extend(claimed.to_le_bytes());
        message.extend(b"abc");
        let error = decode::<String>(&message, LIMIT_BYTES).unwrap_err();
        assert!(error.to_string().contains("claims more"), "{error}");
        // Elements are claimed one by one as they are read, so here the end comes first.
        assert!(decode::<Vec<u64>>(&message, LIMIT_BYTES).is_err());
        assert!(decode::<BTreeMap<String, u64>>(&message, LIMIT_BYTES).is_err());
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let short = decode::<Record>(&golden()[..40], LIMIT_BYTES).unwrap_err();
    let short = short.to_string();
    assert!(short.contains("ends in the middle") && short.contains("Record"), "{short}");
    let outcome = decode::<Outcome>(&[1, 99, 0, 0, 0], LIMIT_BYTES).unwrap_err();
    assert!(outcome.to_string().contains("99"), "{outcome}");
    let text = decode::<String>(&[1, 1, 0, 0, 0, 0, 0, 0, 0, 0xff], LIMIT_BYTES).unwrap_err();
    assert!(text.to_string().contains("UTF-8"), "{text}");
    let flag = decode::<bool>(&[1, 2], LIMIT_BYTES).unwrap_err();
    assert!(flag.to_string().contains("bool is 2"), "{flag}");
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Waiting),
        any::<u64>().prop_map(Outcome::Folded),
        any::<(u16, bool)>().prop_map(|(a, b)| Outcome::Moved(a, b)),
        (".*", any::<Option<u32>>()).prop_map(|(code, index)| Outcome::Discarded { code, index }),
    ]
}

fn record() -> impl Strategy<Value = Record> {
    let plain = (any::<u64>(), any::<i64>(), any::<f64>(), any::<(u8, i8, u16, f32, char)>(), any::<[u8; 32]>());
    let nested = (
        ".*",
        any::<Option<String>>(),
        any::<Option<u8>>(),
        proptest::collection::vec(outcome(), 0..20),
        proptest::collection::btree_map(".*", any::<u32>(), 0..10),
    );
    (plain, nested).prop_map(|(plain, nested)| Record {
        sequence: plain.0,
        offset: plain.1,
        weight: plain.2,
        small: plain.3,
        digest: plain.4,
        client: Name(nested.0),
        note: nested.1,
        none: nested.2,
        outcomes: nested.3,
        counts: nested.4,
        unit: (),
    })
}

proptest! {
    #[test]
    fn round_trip(record in record()) {
        let message = encode(&record, LIMIT_BYTES).unwrap();
        let back: Record = decode(&message, LIMIT_BYTES).unwrap();
        // Bytes, not values: a NaN differs from itself.
        prop_assert_eq!(encode(&back, LIMIT_BYTES).unwrap(), message);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode::<Record>(&bytes, LIMIT_BYTES);
        let mut versioned = vec![1];
        versioned.extend(&bytes);
        let _ = decode::<Record>(&versioned, LIMIT_BYTES);
        let _ = decode::<Vec<Record>>(&versioned, LIMIT_BYTES);
        let _ = decode::<BTreeMap<String, Vec<Option<Outcome>>>>(&versioned, LIMIT_BYTES);
        let _ = decode::<String>(&versioned, LIMIT_BYTES);
    }

    #[test]
    fn a_damaged_message_never_panics_and_what_decodes_is_canonical(
        record in record(),
        at in any::<proptest::sample::Index>(),
        with in any::<u8>(),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut message = encode(&record, LIMIT_BYTES).unwrap();
        let at = at.index(message.len());
        message[at] = with;
        let damaged = decode::<Record>(&message, LIMIT_BYTES);
        // A map whose keys were damaged may lose an entry or its order; every other change shows.
        if let (Ok(other), true) = (damaged, record.counts.is_empty()) {
            prop_assert_eq!(&encode(&other, LIMIT_BYTES).unwrap(), &message);
        }
        message.truncate(cut.index(message.len()));
        prop_assert!(decode::<Record>(&message, LIMIT_BYTES).is_err());
    }
}
