//! What is said of an update beside its body: in the address, and in headers.

use catchment_types::{Code, Digest, Problem, read_object};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of `Catchment-Metrics`.
pub const METRICS_BYTES_MAX: usize = 4 << 10;

/// What the query of an update's address says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Said {
    /// Its weight; not checked yet.
    pub weight: Option<f64>,
    /// Samples it was trained on.
    pub num_samples: Option<u64>,
    /// The task it answers, as the check-in named it.
    pub task: Option<String>,
}

impl Said {
    /// Reads the query.
    ///
    /// # Errors
    /// `bad_request`, naming the field and its value.
    pub fn parse(query: &str) -> Result<Self, Problem> {
        let mut said = Self::default();
        let mut names = BTreeSet::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let bad = |expected: &str| {
                Problem::new(Code::BadRequest, format!("{name}=`{value}` in the address: expected {expected}"))
            };
            if !names.insert(name) {
                return Err(bad("each name once"));
            }
            match name {
                "weight" => said.weight = Some(value.parse().map_err(|_| bad("a number"))?),
                "num_samples" => said.num_samples = Some(value.parse().map_err(|_| bad("a whole number"))?),
                "task" => said.task = Some(value.to_owned()),
                _ => return Err(bad("only weight, num_samples and task are known")),
            }
        }
        Ok(said)
    }
}

/// A digest in a header, with or without the quotes and the weak mark of an ETag.
///
/// # Errors
/// `bad_request`, naming the header.
pub fn parse_digest(name: &str, text: Option<&str>) -> Result<Option<Digest>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let bare = text.trim().trim_start_matches("W/").trim_matches('"');
    bare.parse().map(Some).map_err(|error| Problem::new(Code::BadRequest, format!("{name}: {error}")))
}

/// The numbers that a client reports: a JSON object of finite numbers.
///
/// # Errors
/// `bad_request`, saying what is wrong.
pub fn parse_metrics(text: Option<&str>) -> Result<BTreeMap<String, f64>, Problem> {
    text.map_or_else(|| Ok(BTreeMap::new()), |text| parse_numbers("Catchment-Metrics", text))
}

/// A JSON object of finite numbers, called `what`.
///
/// # Errors
/// `bad_request`, saying what is wrong.
pub fn parse_numbers(what: &str, text: &str) -> Result<BTreeMap<String, f64>, Problem> {
    let bad = |why: String| Problem::new(Code::BadRequest, format!("{what} is a JSON object of finite numbers: {why}"));
    if text.len() > METRICS_BYTES_MAX {
        return Err(bad(format!("{} bytes, the limit is {METRICS_BYTES_MAX}", text.len())));
    }
    let metrics: BTreeMap<String, f64> = read_object(text.as_bytes()).map_err(bad)?;
    match metrics.iter().find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(bad(format!("`{name}` is {value}"))),
        None => Ok(metrics),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_weight_and_samples() {
        let said = Said::parse("weight=2.5&num_samples=10").unwrap();
        assert_eq!((said.weight, said.num_samples), (Some(2.5), Some(10)));
        assert!(Said::parse("weight=x").unwrap_err().detail.contains("weight=`x`"));
        assert!(Said::parse("num_samples=-1").is_err());
        assert!(Said::parse("wieght=1").is_err());
        assert!(Said::parse("weight=1&weight=2").is_err());
        assert!(Said::parse("").unwrap().weight.is_none());
    }

    #[test]
    fn metrics_are_finite_numbers() {
        assert_eq!(parse_metrics(Some(r#"{"loss":0.5}"#)).unwrap()["loss"], 0.5);
        for bad in ["[]", "{\"a\":\"b\"}", "{\"a\":1e999}", "{", &"x".repeat(5000)] {
            assert!(parse_metrics(Some(bad)).is_err(), "{bad}");
        }
    }
}
