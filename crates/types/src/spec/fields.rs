//! Takes a JSON object apart field by field and collects what is wrong with each.

use crate::FieldError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Fields of the design that this version knows but does not run yet, with the one value it accepts.
const ONLY_DEFAULT: &[(&str, &str)] = &[("privacy", "null"), ("clients", "\"open\"")];

/// The fields of one object.
pub struct Fields {
    path: String,
    map: Map<String, Value>,
    errors: Vec<FieldError>,
    /// Whether it was accepted before, by this or another release: then what is out of its limits stays, and fields that
    /// are unknown here are kept.
    is_stored: bool,
    /// Of nested objects, the fields that are unknown here.
    unknown: Map<String, Value>,
}

impl Fields {
    /// The fields of the spec itself.
    pub fn new(mut map: Map<String, Value>) -> Self {
        let mut errors = Vec::new();
        for (field, only) in ONLY_DEFAULT {
            let accepted: Option<Value> = serde_json::from_str(only).ok();
            if let Some(value) = map.remove(*field)
                && accepted.as_ref() != Some(&value)
            {
                errors.push(FieldError {
                    field: (*field).to_owned(),
                    message: format!("this version runs only {only}, not {}", shortened(&value)),
                });
            }
        }
        Self { path: String::new(), map, errors, is_stored: false, unknown: Map::new() }
    }

    /// The fields of a spec that was accepted once.
    pub fn stored(map: Map<String, Value>) -> Self {
        Self { path: String::new(), map, errors: Vec::new(), is_stored: true, unknown: Map::new() }
    }

    /// The fields of the object at `field`, empty when it is absent.
    pub fn nested(&mut self, field: &str) -> Self {
        let map = self.or_default(field);
        self.inside(field, map)
    }

    /// The fields of an object that was read from `field`.
    pub fn inside(&self, field: &str, map: Map<String, Value>) -> Self {
        let is_stored = self.is_stored;
        Self { path: format!("{field}."), map, errors: Vec::new(), is_stored, unknown: Map::new() }
    }

    /// Takes over what was wrong with a nested object, and what is unknown of it.
    pub fn absorb(&mut self, mut nested: Self) {
        let unknown = nested.take_unknown();
        if !unknown.is_empty() {
            self.unknown.insert(nested.path.trim_end_matches('.').to_owned(), Value::Object(unknown));
        }
        if let Err(errors) = nested.finish() {
            self.errors.extend(errors);
        }
    }

    /// Of what was accepted once, the fields that are unknown here. They are not wrong then.
    pub fn take_unknown(&mut self) -> Map<String, Value> {
        let mut unknown = std::mem::take(&mut self.unknown);
        if self.is_stored {
            unknown.append(&mut self.map);
        }
        unknown
    }

    /// Notes that `field` is outside of its limits.
    pub fn error(&mut self, field: &str, message: &str) {
        if !self.is_stored {
            self.unreadable(field, message);
        }
    }

    /// Notes that `field` cannot be read.
    pub fn unreadable(&mut self, field: &str, message: &str) {
        self.errors.push(FieldError { field: format!("{}{field}", self.path), message: message.to_owned() });
    }

    /// Whether `field` is known to be wrong.
    pub fn has_error(&self, field: &str) -> bool {
        self.errors.iter().any(|error| error.field == field)
    }

    fn take<T: DeserializeOwned>(&mut self, field: &str) -> Option<T> {
        let value = self.map.remove(field)?;
        let shown = shortened(&value);
        match crate::read_value(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.unreadable(field, &format!("{shown}: {error}"));
                None
            }
        }
    }

    /// A field that must be there.
    pub fn required<T: DeserializeOwned>(&mut self, field: &str) -> Option<T> {
        if !self.map.contains_key(field) {
            self.unreadable(field, "is required");
        }
        self.take(field)
    }

    /// A field, or what `default` makes.
    pub fn or_else<T: DeserializeOwned>(&mut self, field: &str, default: impl FnOnce() -> T) -> T {
        self.take(field).unwrap_or_else(default)
    }

    /// A field, or its type's default.
    pub fn or_default<T: DeserializeOwned + Default>(&mut self, field: &str) -> T {
        self.take(field).unwrap_or_default()
    }

    /// A whole number from 1 to `max`.
    pub fn count(&mut self, field: &str, default: u64, max: u64) -> u64 {
        match self.take::<u64>(field) {
            None => default,
            // Nothing that was accepted was 0; what counts relies on it.
            Some(value) if self.is_stored => value.max(1),
            Some(value) if (1..=max).contains(&value) => value,
            Some(value) => {
                self.error(field, &format!("{value} is not from 1 to {max}"));
                default
            }
        }
    }

    /// Every error, those for unknown fields included.
    pub fn finish(mut self) -> Result<(), Vec<FieldError>> {
        let unknown: Vec<String> = self.map.keys().cloned().collect();
        for field in unknown {
            self.unreadable(&field, "unknown field");
        }
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { format!("{}…", text.chars().take(60).collect::<String>()) }
}
