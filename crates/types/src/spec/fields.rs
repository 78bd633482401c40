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
        Self { path: String::new(), map, errors }
    }

    /// The fields of the object at `field`, empty when it is absent.
    pub fn nested(&mut self, field: &str) -> Self {
        Self { path: format!("{field}."), map: self.or_default(field), errors: Vec::new() }
    }

    /// The fields of an object that was read from `field`.
    pub fn inside(&self, field: &str, map: Map<String, Value>) -> Self {
        Self { path: format!("{field}."), map, errors: Vec::new() }
    }

    /// Takes over what was wrong with a nested object.
    pub fn absorb(&mut self, nested: Self) {
        if let Err(errors) = nested.finish() {
            self.errors.extend(errors);
        }
    }

    /// Notes that `field` is wrong.
    pub fn error(&mut self, field: &str, message: &str) {
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
                self.error(field, &format!("{shown}: {error}"));
                None
            }
        }
    }

    /// A field that must be there.
    pub fn required<T: DeserializeOwned>(&mut self, field: &str) -> Option<T> {
        if !self.map.contains_key(field) {
            self.error(field, "is required");
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
            self.error(&field, "unknown field");
        }
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { format!("{}…", text.chars().take(60).collect::<String>()) }
}
