//! Reads JSON objects, and nothing else where an object is wanted.
//!
//! What serde derives for a struct takes an array of its fields as well: `[]` would be a check-in, and `["*", "keep"]` a
//! rule. Nobody means that, so arrays are refused here, at any depth.

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde_json::Value;
use std::fmt;

/// Reads the JSON object that is all of `text`.
///
/// # Errors
/// Says what was expected, in words that belong after the name of what was read.
pub fn read_object<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| format!("expected a JSON object: {error}"))?;
    if !value.is_object() {
        return Err(format!("expected a JSON object, found {}", kind(&value)));
    }
    read_value(value).map_err(|error| error.to_string())
}

/// Reads a value in which every struct is an object.
///
/// # Errors
/// Those of the type.
pub fn read_value<T: DeserializeOwned>(value: Value) -> Result<T, serde_json::Error> {
    T::deserialize(Strict(value))
}

/// What a value is, in the words of JSON.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A deserializer, seed or access whose structs are maps.
struct Strict<T>(T);

/// A visitor of what a strict deserializer finds.
struct Found<V> {
    visitor: V,
    /// Whether only an object will do.
    is_object: bool,
}

impl<V> Found<V> {
    fn any(visitor: V) -> Self {
        Self { visitor, is_object: false }
    }

    fn object(visitor: V) -> Self {
        Self { visitor, is_object: true }
    }
}

macro_rules! forward {
    ($($method:ident($($argument:ident: $type:ty),*)),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method($($argument,)* Found::any(visitor))
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<D> {
    type Error = D::Error;

    forward! {
        deserialize_any(), deserialize_bool(), deserialize_i8(), deserialize_i16(), deserialize_i32(), deserialize_i64(),
        deserialize_i128(), deserialize_u8(), deserialize_u16(), deserialize_u32(), deserialize_u64(), deserialize_u128(),
        deserialize_f32(), deserialize_f64(), deserialize_char(), deserialize_str(), deserialize_string(),
        deserialize_bytes(), deserialize_byte_buf(), deserialize_option(), deserialize_unit(), deserialize_seq(),
        deserialize_identifier(), deserialize_ignored_any(),
        deserialize_unit_struct(name: &'static str), deserialize_newtype_struct(name: &'static str),
        deserialize_tuple(length: usize), deserialize_tuple_struct(name: &'static str, length: usize),
        deserialize_enum(name: &'static str, variants: &'static [&'static str]),
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Found::object(visitor))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Found::object(visitor))
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident($type:ty)),* $(,)?) => {
        $(fn $method<E: serde::de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.visitor.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Found<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_object { f.write_str("a JSON object") } else { self.visitor.expecting(f) }
    }

    visit! {
        visit_bool(bool), visit_i8(i8), visit_i16(i16), visit_i32(i32), visit_i64(i64), visit_i128(i128), visit_u8(u8),
        visit_u16(u16), visit_u32(u32), visit_u64(u64), visit_u128(u128), visit_f32(f32), visit_f64(f64),
        visit_char(char), visit_str(&str), visit_borrowed_str(&'de str), visit_string(String), visit_bytes(&[u8]),
        visit_borrowed_bytes(&'de [u8]), visit_byte_buf(Vec<u8>),
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Strict(deserializer))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(Strict(deserializer))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Strict(access))
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Strict(access))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(Strict(access))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Strict<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Strict(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Strict(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Strict(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Strict<A> {
    type Error = A::Error;
    type Variant = Strict<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        self.0.variant_seed(seed).map(|(value, variant)| (value, Strict(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.newtype_variant_seed(Strict(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(length, Found::any(visitor))
    }

    /// The fields of a variant are read as what the variant holds: an object.
    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, A::Error> {
        self.0.newtype_variant_seed(Object(visitor))
    }
}

/// Reads an object for this visitor.
struct Object<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Object<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        deserializer.deserialize_map(Found::object(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CheckIn, Mode, SpecPatch, TensorRule, Topology};
    use serde_json::json;
    use std::collections::BTreeMap;

    fn refused<T: DeserializeOwned>(value: Value) -> String {
        match read_value::<T>(value.clone()) {
            Ok(_) => panic!("{value} is taken"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn an_array_is_no_struct_at_any_depth() {
        for said in [
            refused::<CheckIn>(json!([])),
            refused::<SpecPatch>(json!([1, 2, "1h"])),
            refused::<Vec<TensorRule>>(json!([["*", "keep"]])),
            refused::<Option<TensorRule>>(json!(["*", "keep"])),
            refused::<BTreeMap<String, TensorRule>>(json!({"a": ["*", "keep"]})),
            refused::<Topology>(json!({"tree": [4, 0]})),
            refused::<Mode>(json!({"async": [4, null]})),
            refused::<BTreeMap<String, f64>>(json!([])),
        ] {
            assert!(said.contains("invalid type: sequence, expected a JSON object"), "{said}");
        }
    }

    #[test]
    fn objects_are_read_as_ever() {
        let rules: Vec<TensorRule> = read_value(json!([{"match": "*", "rule": "keep"}])).unwrap();
        assert_eq!(rules[0].pattern, "*");
        assert_eq!(read_value::<Topology>(json!("auto")).unwrap(), Topology::Auto);
        let tree = read_value::<Topology>(json!({"tree": {"leaves": 4, "middles": 1}})).unwrap();
        assert_eq!(tree, Topology::Tree { leaves: 4, middles: 1 });
        let by_round: BTreeMap<u64, BTreeMap<String, f64>> = read_value(json!({"3": {"a": 1}})).unwrap();
        assert_eq!(by_round[&3]["a"], 1.0);
        let checkin: CheckIn = read_object(br#"{"job": "a", "labels": {"site": "north"}, "num_samples": 3}"#).unwrap();
        assert_eq!((checkin.labels["site"].as_str(), checkin.num_samples), ("north", Some(3)));
        assert!(read_object::<CheckIn>(br#"{"job": null}"#).unwrap().job.is_none());
    }

    #[test]
    fn what_is_no_object_is_named() {
        for (text, says) in [
            ("[]", "expected a JSON object, found an array"),
            ("3", "expected a JSON object, found a number"),
            ("null", "expected a JSON object, found null"),
            ("\"{}\"", "expected a JSON object, found a string"),
            ("true", "expected a JSON object, found a boolean"),
            ("", "expected a JSON object: EOF"),
            ("{} {}", "expected a JSON object: trailing characters"),
            ("{}x", "expected a JSON object: trailing characters"),
            (r#"{"frobnicate": 1}"#, "unknown field `frobnicate`"),
        ] {
            let said = read_object::<CheckIn>(text.as_bytes()).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
