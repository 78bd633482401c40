//! Prometheus text, read back.

use std::collections::BTreeMap;

/// One line of the exposition.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// One scrape.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Every line.
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Reads the text format.
    ///
    /// # Panics
    /// On a line that is none of the format's.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Self { samples: lines.map(|line| sample(line).unwrap_or_else(|| panic!("no sample: {line}"))).collect() }
    }

    /// The sum of all samples of this name that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| labels.iter().all(|(k, v)| sample.labels.get(*k).is_some_and(|found| found == v));
        self.samples.iter().filter(|sample| sample.name == name).filter(has).map(|sample| sample.value).sum()
    }

    /// Bytes of shared memory that hold something: being received, kept, or summed up in.
    pub fn slab_bytes_in_use(&self) -> u64 {
        let states = ["granted", "frozen", "accumulator"];
        let of = |state: &str| {
            let name = "catchment_slab_bytes";
            let known =
                self.samples.iter().any(|s| s.name == name && s.labels.get("state").is_some_and(|v| v == state));
            assert!(known, "{name} has no state `{state}`");
            self.sum(name, &[("state", state)]) as u64
        };
        states.into_iter().map(of).sum()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = series.split_once('{') else {
        return Some(Sample { name: series.to_owned(), labels: BTreeMap::new(), value });
    };
    let mut labels = BTreeMap::new();
    for pair in rest.strip_suffix('}')?.split("\",").filter(|pair| !pair.is_empty()) {
        let (label, text) = pair.split_once("=\"")?;
        labels.insert(label.to_owned(), text.trim_end_matches('"').to_owned());
    }
    Some(Sample { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back() {
        let metrics = Metrics::parse("# HELP a b\na{x=\"1\",y=\"z\"} 2\na{x=\"2\",y=\"z\"} 3\nb 1e3\n");
        assert_eq!((metrics.sum("a", &[("y", "z")]), metrics.sum("a", &[("x", "2")])), (5.0, 3.0));
        assert_eq!(metrics.sum("b", &[]), 1000.0);
    }
}
