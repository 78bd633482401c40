//! What a job's owner asks of a function: its configuration, read field by field, and the arithmetic.
//!
//! Every getter names the field it refuses, because the message goes unchanged to the person who wrote the job's spec.

use crate::Exact;
use alloc::format;
use alloc::string::{String, ToString};
use core::ops::RangeInclusive;
use serde_json::{Map, Value};

/// Longest configuration in bytes of JSON.
pub const CONFIG_BYTES_MAX: usize = 256 << 10;

/// A function's configuration: a JSON object, and whether sums are exact.
#[derive(Debug, Clone, Default)]
pub struct Config {
    fields: Map<String, Value>,
    exact: Option<Exact>,
}

impl Config {
    /// Reads a configuration. No bytes at all and `null` are the empty configuration.
    ///
    /// # Errors
    /// Says what is wrong with the text: too long, no JSON, or no object.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        if json.len() > CONFIG_BYTES_MAX {
            return Err(format!("config: {} bytes, at most {CONFIG_BYTES_MAX} are read", json.len()));
        }
        if json.is_empty() {
            return Ok(Self::default());
        }
        match serde_json::from_slice(json).map_err(|e| format!("config: not JSON: {e}"))? {
            Value::Null => Ok(Self::default()),
            Value::Object(fields) => Ok(Self { fields, exact: None }),
            other => Err(format!("config: expected an object, found {}", kind_of(&other))),
        }
    }

    /// The same configuration of a job whose sums are exact.
    pub fn with_exact(self, exact: Option<Exact>) -> Self {
        Self { exact, ..self }
    }

    /// How sums are rounded, when they are exact. A function that weighs updates in its own way refuses here what
    /// would go beyond [`Exact::weight_max`].
    pub fn exact(&self) -> Option<Exact> {
        self.exact
    }

    /// Refuses any field that is not among `known`.
    ///
    /// # Errors
    /// Names the first unknown field and lists the known ones.
    pub fn only(&self, known: &[&str]) -> Result<(), String> {
        match self.fields.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) if known.is_empty() => Err(format!("config: unknown field `{name}`; this function takes none")),
            Some(name) => Err(format!("config: unknown field `{name}`; known are {}", quoted(known))),
        }
    }

    /// The field's value as it stands.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// A number within `range`.
    ///
    /// # Errors
    /// Names the field, the range and what was found.
    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, String> {
        self.read(
            name,
            Value::as_f64,
            |x| range.contains(x),
            || format!("a number from {} to {}", range.start(), range.end()),
        )
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// Names the field, the range and what was found.
    pub fn integer(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, String> {
        self.read(
            name,
            Value::as_u64,
            |x| range.contains(x),
            || format!("a whole number from {} to {}", range.start(), range.end()),
        )
    }

    /// True or false.
    ///
    /// # Errors
    /// Names the field and what was found.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, String> {
        self.read(name, Value::as_bool, |_| true, || "true or false".to_string())
    }

    /// One of several words, each standing for a value.
    ///
    /// # Errors
    /// Names the field, the words and what was found.
    pub fn choice<T: Copy>(&self, name: &str, options: &[(&str, T)]) -> Result<Option<T>, String> {
        let pick = |value: &Value| {
            let word = value.as_str()?;
            options.iter().find(|(option, _)| *option == word).map(|&(_, meaning)| meaning)
        };
        self.read(
            name,
            pick,
            |_| true,
            || {
                let words: alloc::vec::Vec<&str> = options.iter().map(|&(word, _)| word).collect();
                format!("one of {}", quoted(&words))
            },
        )
    }

    fn read<T>(
        &self,
        name: &str,
        get: impl Fn(&Value) -> Option<T>,
        fits: impl Fn(&T) -> bool,
        expected: impl Fn() -> String,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.fields.get(name) else { return Ok(None) };
        match get(value).filter(fits) {
            Some(meaning) => Ok(Some(meaning)),
            None => Err(format!("config.{name}: expected {}, found {}", expected(), shown(value))),
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The value itself when it is short, else its kind.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind_of(value).to_string(),
        Value::String(text) if text.len() > 64 => kind_of(value).to_string(),
        scalar => scalar.to_string(),
    }
}

fn quoted(words: &[&str]) -> String {
    let mut text = String::new();
    for (i, word) in words.iter().enumerate() {
        if i > 0 {
            text.push_str(", ");
        }
        text.push_str(&format!("`{word}`"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        Config::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn reads_fields() {
        let c = config(r#"{"beta": 0.5, "steps": 3, "on": true, "mode": "b"}"#);
        assert_eq!(c.number("beta", 0.0..=1.0), Ok(Some(0.5)));
        assert_eq!(c.number("steps", 0.0..=9.0), Ok(Some(3.0)));
        assert_eq!(c.integer("steps", 1..=5), Ok(Some(3)));
        assert_eq!(c.flag("on"), Ok(Some(true)));
        assert_eq!(c.choice("mode", &[("a", 1), ("b", 2)]), Ok(Some(2)));
        assert_eq!(c.flag("absent"), Ok(None));
        assert_eq!(c.only(&["beta", "steps", "on", "mode"]), Ok(()));
        assert!(c.value("beta").is_some());
    }

    #[test]
    fn refusals_name_the_field() {
        let c = config(r#"{"beta": 2.5, "mode": "z", "on": [1]}"#);
        assert_eq!(c.number("beta", 0.0..=1.0).unwrap_err(), "config.beta: expected a number from 0 to 1, found 2.5");
        assert_eq!(
            c.choice("mode", &[("a", 1), ("b", 2)]).unwrap_err(),
            "config.mode: expected one of `a`, `b`, found \"z\""
        );
        assert_eq!(c.flag("on").unwrap_err(), "config.on: expected true or false, found an array");
        assert_eq!(c.only(&["beta", "mode"]).unwrap_err(), "config: unknown field `on`; known are `beta`, `mode`");
        assert_eq!(config(r#"{"x":1}"#).only(&[]).unwrap_err(), "config: unknown field `x`; this function takes none");
    }

    #[test]
    fn only_objects_are_configurations() {
        assert!(Config::parse(b"").is_ok());
        assert!(Config::parse(b"null").is_ok());
        assert_eq!(Config::parse(b"[]").unwrap_err(), "config: expected an object, found an array");
        assert!(Config::parse(b"{").unwrap_err().starts_with("config: not JSON"));
        assert!(Config::parse(&[b' '; CONFIG_BYTES_MAX + 1]).unwrap_err().contains("at most"));
    }
}
