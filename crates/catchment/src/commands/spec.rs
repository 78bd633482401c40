//! A job's spec as its owner gives it: a file, flags, or both.
//!
//! The spec stays a JSON object on its way to the server, which checks it and names every bad field. So a server that
//! knows more fields than this program can be used to the full, through a file or `--set`.

use crate::exit::Failure;
use anyhow::{Context as _, Result};
use catchment_types::{Dtype, DurationText, Name, SPEC_BYTES_MAX};
use clap::builder::PossibleValuesParser;
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The common fields, and a way to set every other.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "The job's spec; what is given here wins over the file")]
pub struct SpecFlags {
    /// Read the spec from a JSON or TOML file; - reads standard input.
    #[arg(long, value_name = "FILE")]
    pub spec: Option<PathBuf>,
    /// The function that aggregates: a name, or name@digest to pin its bytes. `catchment function list` names them.
    #[arg(long, value_name = "NAME[@DIGEST]")]
    function: Option<String>,
    /// Rounds until the job is completed [server's default: 10].
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// Updates that close a round [server's default: 2].
    #[arg(long, value_name = "N")]
    goal: Option<u64>,
    /// Updates that a round needs at its deadline to give a model [server's default: half of the goal].
    #[arg(long, value_name = "N")]
    min_updates: Option<u64>,
    /// Tasks handed out for a round, as a multiple of the goal [server's default: 1.3].
    #[arg(long, value_name = "FACTOR", value_parser = finite)]
    over_provision: Option<f64>,
    /// How long a round stays open, like 90s or 10m, or none [server's default: 10m].
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    deadline: Option<Value>,
    /// What happens when the deadline passes with too few updates [server's default: retry].
    #[arg(long, value_name = "WHAT", value_parser = PossibleValuesParser::new(["retry", "skip", "fail"]))]
    on_shortfall: Option<String>,
    /// What clients send: whole weights, or differences from the round's model [server's default: weights].
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(["weights", "delta"]))]
    update: Option<String>,
    /// A float type that updates may use beside the model's own, like BF16. May be given more than once.
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    update_dtype: Vec<Dtype>,
    /// Shape of the aggregation: auto, or tree:LEAVES[,MIDDLES] [server's default: auto].
    #[arg(long, value_name = "SHAPE", value_parser = topology)]
    topology: Option<Value>,
    /// Model versions kept beside the initial one [server's default: 10].
    #[arg(long, value_name = "N")]
    keep_last: Option<u64>,
    /// How long receipts of ended rounds are kept [server's default: 24h].
    #[arg(long, value_name = "TIME")]
    receipts: Option<DurationText>,
    /// A setting of the function's own. The value is JSON, or else text. May be given more than once.
    #[arg(long, value_name = "KEY=VALUE")]
    config: Vec<Assignment>,
    /// A setting that clients get with every task, like local_epochs=3. May be given more than once.
    #[arg(long, value_name = "KEY=VALUE")]
    client_config: Vec<Assignment>,
    /// Any field by its path, like limits.update_bytes=1000000. The value is JSON, or else text.
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<Assignment>,
}

/// One value at a path of names.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    path: Vec<String>,
    value: Value,
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` does not read as NAME=VALUE or NAME.NAME=VALUE");
        let (path, value) = text.split_once('=').ok_or_else(expected)?;
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(expected());
        }
        Ok(Self { path, value: serde_json::from_str(value).unwrap_or_else(|_| value.into()) })
    }
}

impl Assignment {
    fn apply(&self, under: &str, map: &mut Map<String, Value>) -> Result<(), Failure> {
        let mut path: Vec<&str> = under.split_terminator('.').collect();
        path.extend(self.path.iter().map(String::as_str));
        let (last, parents) = path.split_last().expect("an assignment has a name");
        let mut map = map;
        for (depth, name) in parents.iter().enumerate() {
            let inner = map.entry(*name).or_insert_with(|| json!({})).as_object_mut();
            map = inner.ok_or_else(|| {
                let (whole, outer) = (path.join("."), parents[..=depth].join("."));
                Failure::Config(format!("cannot set {whole}: {outer} in the spec file is no object"))
            })?;
        }
        map.insert((*last).to_owned(), self.value.clone());
        Ok(())
    }
}

impl SpecFlags {
    /// The spec: the file's fields, then the flags', then `--set`; the later wins.
    ///
    /// # Errors
    /// A file that cannot be read or does not parse. Whether the fields are right is for the server to say.
    pub fn merged(&self, name: Option<&Name>, namespace: Option<&Name>) -> Result<Map<String, Value>> {
        let mut spec = self.spec.as_deref().map(read).transpose()?.unwrap_or_default();
        let dtypes = (!self.update_dtype.is_empty()).then(|| json!(self.update_dtype));
        let given = [
            ("name", name.map(|name| json!(name))),
            ("namespace", namespace.map(|namespace| json!(namespace))),
            ("function", self.function.as_ref().map(|name| json!(name))),
            ("rounds", self.rounds.map(Value::from)),
            ("goal", self.goal.map(Value::from)),
            ("min_updates", self.min_updates.map(Value::from)),
            ("over_provision", self.over_provision.map(Value::from)),
            ("deadline", self.deadline.clone()),
            ("on_shortfall", self.on_shortfall.as_ref().map(|what| json!(what))),
            ("update", self.update.as_ref().map(|kind| json!(kind))),
            ("update_dtypes", dtypes),
            ("topology", self.topology.clone()),
            ("receipts", self.receipts.map(|time| json!(time))),
        ];
        spec.extend(given.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))));
        if let Some(n) = self.keep_last {
            let keep_last = Assignment { path: vec!["keep_last".to_owned()], value: n.into() };
            keep_last.apply("checkpoints", &mut spec)?;
        }
        for (under, assignments) in [("config", &self.config), ("client_config", &self.client_config), ("", &self.set)]
        {
            assignments.iter().try_for_each(|assignment| assignment.apply(under, &mut spec))?;
        }
        Ok(spec)
    }
}

fn finite(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value: &f64| value.is_finite()).ok_or_else(|| "a finite number".to_owned())
}

fn deadline(text: &str) -> Result<Value, String> {
    if text == "none" { Ok(Value::Null) } else { text.parse::<DurationText>().map(|time| json!(time)) }
}

fn dtype(text: &str) -> Result<Dtype, String> {
    Dtype::from_name(&text.to_uppercase()).ok_or_else(|| "a dtype as safetensors names it, like F16 or BF16".to_owned())
}

fn topology(text: &str) -> Result<Value, String> {
    let expected = || "auto, or tree:LEAVES[,MIDDLES] like tree:8,2".to_owned();
    if text == "auto" {
        return Ok(json!("auto"));
    }
    let (leaves, middles) =
        text.strip_prefix("tree:").map(|n| n.split_once(',').unwrap_or((n, "0"))).ok_or_else(expected)?;
    let number = |text: &str| text.parse::<u32>().map_err(|_| expected());
    Ok(json!({"tree": {"leaves": number(leaves)?, "middles": number(middles)?}}))
}

/// Reads a spec file. Its ending says what it is; without one, a JSON object begins with a brace.
fn read(path: &Path) -> Result<Map<String, Value>> {
    let shown = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let mut text = String::new();
    let limit = SPEC_BYTES_MAX as u64 + 1;
    let read = if path == Path::new("-") {
        std::io::stdin().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.with_context(|| format!("read the spec from {shown}"))?;
    if text.len() > SPEC_BYTES_MAX {
        return Err(Failure::Config(format!("{shown}: a spec has at most {SPEC_BYTES_MAX} bytes")).into());
    }
    let is_json = match path.extension().and_then(|ending| ending.to_str()) {
        Some("json") => true,
        Some("toml") => false,
        _ => text.trim_start().starts_with('{'),
    };
    let map = if is_json { from_json(&text) } else { from_toml(&text) };
    Ok(map.map_err(|why| Failure::Config(format!("{shown}: {why}")))?)
}

fn from_json(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("a spec is a JSON object".to_owned()),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

fn from_toml(text: &str) -> Result<Map<String, Value>, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| format!("not TOML: {}", error.to_string().trim()))?;
    to_json(toml::Value::Table(table)).map(|value| match value {
        Value::Object(map) => map,
        _ => unreachable!("a table becomes an object"),
    })
}

/// TOML's values in JSON's: a date becomes text, and there are no infinities.
fn to_json(value: toml::Value) -> Result<Value, String> {
    Ok(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Float(number) if number.is_finite() => number.into(),
        toml::Value::Float(number) => return Err(format!("{number} is not a finite number")),
        toml::Value::Array(items) => items.into_iter().map(to_json).collect::<Result<_, _>>()?,
        toml::Value::Table(table) => {
            let entry = |(name, value)| to_json(value).map(|value| (name, value));
            Value::Object(table.into_iter().map(entry).collect::<Result<_, _>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use catchment_types::JobSpec;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: SpecFlags,
    }

    fn flags(line: &[&str]) -> SpecFlags {
        Line::try_parse_from([&["create"], line].concat()).unwrap_or_else(|error| panic!("{error}")).flags
    }

    fn merged(line: &[&str]) -> Value {
        Value::Object(flags(line).merged(None, None).unwrap_or_else(|error| panic!("{error:#}")))
    }

    fn file(name: &str, text: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path.to_str().unwrap().to_owned())
    }

    #[test]
    fn nothing_given_is_nothing_said() {
        assert_eq!(merged(&[]), json!({}));
    }

    #[test]
    fn flags_win_over_the_file_and_leave_the_rest() {
        let text = r#"{"name":"a","goal":3,"rounds":5,"config":{"x":1,"y":2},"checkpoints":{"keep_last":1}}"#;
        let (_dir, path) = file("spec.json", text);
        let flags =
            flags(&["--spec", &path, "--goal", "9", "--config", "y=3", "--keep-last", "7", "--set", "rounds=6"]);
        let name: Name = "b".parse().unwrap();
        let spec = flags.merged(Some(&name), None).unwrap();
        assert_eq!(
            Value::Object(spec),
            json!({"name":"b","goal":9,"rounds":6,"config":{"x":1,"y":3},"checkpoints":{"keep_last":7}})
        );
    }

    #[test]
    fn every_flag_makes_a_spec_that_the_server_takes() {
        let line = "--function fedavg --rounds 20 --goal 10 --min-updates 4 --over-provision 1.5 --deadline 90s \
            --on-shortfall skip --update delta --update-dtype bf16 --update-dtype F16 --topology tree:8,2 \
            --keep-last 3 --receipts 1h --client-config lr=0.1 --client-config optimizer=sgd \
            --set limits.update_bytes=1000 --set client_config_from_round.5.lr=0.01";
        let line: Vec<&str> = line.split_whitespace().collect();
        let name: Name = "digits".parse().unwrap();
        let map = flags(&line).merged(Some(&name), Some(&name)).unwrap();
        let spec = JobSpec::from_map(map).unwrap();
        assert_eq!((spec.rounds, spec.goal, spec.min_updates, spec.over_provision), (20, 10, 4, 1.5));
        assert_eq!(spec.deadline.unwrap().ms(), 90_000);
        assert_eq!(spec.update_dtypes, [Dtype::Bf16, Dtype::F16]);
        assert_eq!((spec.topology.leaves(), spec.checkpoints.keep_last), (8, 3));
        assert_eq!((spec.limits.update_bytes, spec.namespace.as_str()), (1000, "digits"));
        assert_eq!(Value::Object(spec.client_config_for(1)), json!({"lr": 0.1, "optimizer": "sgd"}));
        assert_eq!(spec.client_config_for(5)["lr"], 0.01);
    }

    #[test]
    fn no_deadline_is_null() {
        assert_eq!(merged(&["--deadline", "none"]), json!({"deadline": null}));
        assert_eq!(merged(&["--topology", "auto"]), json!({"topology": "auto"}));
        assert_eq!(merged(&["--topology", "tree:4"]), json!({"topology": {"tree": {"leaves": 4, "middles": 0}}}));
    }

    #[test]
    fn toml_reads_as_json_does() {
        let text = "name = 'a'\ngoal = 3\nover_provision = 1.5\nupdate_dtypes = ['F16']\n[client_config]\nlr = 0.5\n\
            since = 2026-01-01\n[[tensors]]\nmatch = '*.running_*'\nrule = 'max'\n";
        for name in ["spec.toml", "spec"] {
            let (_dir, path) = file(name, text);
            let expected = json!({"name":"a","goal":3,"over_provision":1.5,"update_dtypes":["F16"],
                "client_config":{"lr":0.5,"since":"2026-01-01"},"tensors":[{"match":"*.running_*","rule":"max"}]});
            assert_eq!(merged(&["--spec", &path]), expected);
        }
        let (_dir, path) = file("spec.yaml", " {\"name\": \"a\"}");
        assert_eq!(merged(&["--spec", &path]), json!({"name": "a"}));
    }

    #[test]
    fn a_bad_file_is_named_with_what_is_wrong() {
        for (name, text, expected) in [
            ("a.json", "{", "not JSON: "),
            ("a.json", "[]", "a spec is a JSON object"),
            ("a.toml", "goal =", "not TOML: "),
            ("a.toml", "goal = inf", "inf is not a finite number"),
            ("a.json", &" ".repeat(SPEC_BYTES_MAX + 1), "at most"),
        ] {
            let (_dir, path) = file(name, text);
            let error = flags(&["--spec", &path]).merged(None, None).unwrap_err();
            assert!(matches!(error.downcast_ref(), Some(Failure::Config(_))), "{error}");
            assert!(error.to_string().contains(name) && error.to_string().contains(expected), "{error}");
        }
        assert!(flags(&["--spec", "/nonexistent"]).merged(None, None).is_err());
        let (_dir, path) = file("a.json", r#"{"limits": 3}"#);
        let error = flags(&["--spec", &path, "--set", "limits.cpu_ms=1"]).merged(None, None).unwrap_err();
        assert_eq!(error.to_string(), "cannot set limits.cpu_ms: limits in the spec file is no object");
    }

    #[test]
    fn assignments_read() {
        let read = |text: &str| text.parse::<Assignment>();
        assert_eq!(read("a.b=1"), Ok(Assignment { path: vec!["a".into(), "b".into()], value: 1.into() }));
        assert_eq!(read("a=x=y").unwrap().value, "x=y");
        assert_eq!(read("a=\"1\"").unwrap().value, "1");
        assert_eq!(read("a=").unwrap().value, "");
        for bad in ["", "a", "=1", "a..b=1", ".=1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_values_are_wrong_arguments() {
        for line in [
            ["--deadline", "soon"],
            ["--topology", "ring"],
            ["--update-dtype", "F99"],
            ["--over-provision", "NaN"],
            ["--on-shortfall", "panic"],
            ["--set", "x"],
        ] {
            assert!(Line::try_parse_from([&["create"], &line[..]].concat()).is_err(), "{line:?}");
        }
    }
}
