//! What is said of an update beside its body: in the address, and in headers.

use catchment_types::{Code, Digest, Problem, read_object};
use std::collections::{BTreeMap, BTreeSet};

/// What a query may say.
const NAMES: [&str; 4] = ["weight", "num_samples", "task", "uid"];
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
    /// Reads the query of an update, which holds nothing else.
    ///
    /// # Errors
    /// `bad_request`, naming the field and its value.
    pub fn parse(query: &str) -> Result<Self, Problem> {
        Self::read(query, true)
    }

    /// Reads what it knows of another call's query.
    ///
    /// # Errors
    /// `bad_request`, naming the field and its value.
    pub fn parse_known(query: &str) -> Result<Self, Problem> {
        Self::read(query, false)
    }

    fn read(query: &str, is_strict: bool) -> Result<Self, Problem> {
        let mut said = Self::default();
        let mut names = BTreeSet::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let bad = |expected: &str| {
                Problem::new(Code::BadRequest, format!("{name}=`{value}` in the address: expected {expected}"))
            };
            if NAMES.contains(&name) && !names.insert(name) {
                return Err(bad("each name once"));
            }
            match name {
                "weight" => said.weight = Some(value.parse().map_err(|_| bad("a number"))?),
                "num_samples" => said.num_samples = Some(value.parse().map_err(|_| bad("a whole number"))?),
                "task" => said.task = Some(value.to_owned()),
                // Whose update it is; read where the job is looked up.
                "uid" => {}
                _ if is_strict => return Err(bad("only weight, num_samples, task and uid are known")),
                _ => {}
            }
        }
        Ok(said)
    }
}

/// Samples that an update was trained on, or a model measured on: 1 when nobody says.
///
/// # Errors
/// `out_of_range` for none: there is nothing to learn from them.
pub fn check_samples(num_samples: Option<u64>) -> Result<u64, Problem> {
    match num_samples {
        Some(0) => Err(Problem::new(Code::OutOfRange, "num_samples is 0: what comes of no samples has nothing to say")),
        said => Ok(said.unwrap_or(1)),
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
        assert!(Said::parse("uid=1&uid=1").is_err());
        assert!(Said::parse("").unwrap().weight.is_none());
        assert_eq!(Said::parse("uid=ab&task=t").unwrap().task.as_deref(), Some("t"));
    }

    #[test]
    fn other_calls_say_more_and_their_numbers_are_read_alike() {
        let said = Said::parse_known("limit=5&limit=6&num_samples=4").unwrap();
        assert_eq!(said, Said { num_samples: Some(4), ..Said::default() });
        for bad in ["num_samples=-1", "num_samples=1&num_samples=1", "num_samples=18446744073709551616"] {
            assert!(Said::parse_known(bad).is_err() && Said::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_samples_are_too_few() {
        assert_eq!((check_samples(None).unwrap(), check_samples(Some(u64::MAX)).unwrap()), (1, u64::MAX));
        assert_eq!(check_samples(Some(0)).unwrap_err().code, "out_of_range");
    }

    #[test]
    fn metrics_are_finite_numbers() {
        assert_eq!(parse_metrics(Some(r#"{"loss":0.5}"#)).unwrap()["loss"], 0.5);
        for bad in ["[]", "{\"a\":\"b\"}", "{\"a\":1e999}", "{", &"x".repeat(5000)] {
            assert!(parse_metrics(Some(bad)).is_err(), "{bad}");
        }
    }
}
