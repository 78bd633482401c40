//! A spec as it is stored: one that was accepted once stays accepted, and says all that it said then.

use super::JobSpec;
use super::fields::Fields;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

impl JobSpec {
    /// Reads a spec that was accepted once, by this or another release. No limit is held against it, because what was
    /// accepted stays accepted, and fields that are unknown here are kept.
    ///
    /// # Errors
    /// It cannot be understood: it is no JSON object, or a field that is known has a form that is not.
    pub fn stored(text: &[u8]) -> Result<Self, String> {
        let map: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        Self::read(Fields::stored(map)).map_err(|errors| {
            let texts: Vec<String> = errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
            texts.join("; ")
        })
    }

    /// The spec as JSON, defaults filled in.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&Whole(self)).expect("a spec is plain data with text keys")
    }

    /// Writes it with the fields that this release does not know.
    pub(crate) fn write_whole<S: Serializer>(spec: &Self, serializer: S) -> Result<S::Ok, S::Error> {
        Whole(spec).serialize(serializer)
    }
}

/// A spec with the fields that this release does not know.
struct Whole<'a>(&'a JobSpec);

impl Serialize for Whole<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(spec) = self;
        if spec.unknown.is_empty() {
            return spec.serialize(serializer);
        }
        let mut whole = serde_json::to_value(spec).map_err(serde::ser::Error::custom)?;
        merge(&mut whole, &spec.unknown);
        whole.serialize(serializer)
    }
}

fn merge(into: &mut Value, unknown: &Map<String, Value>) {
    let Value::Object(into) = into else { return };
    for (field, value) in unknown {
        match (into.get_mut(field), value) {
            (Some(known), Value::Object(inside)) => merge(known, inside),
            _ => drop(into.insert(field.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FieldError, SpecPatch};

    fn read(text: &str) -> Result<JobSpec, Vec<FieldError>> {
        JobSpec::from_json(text.as_bytes())
    }

    /// What is stored is the spec with its defaults of then, so a default that changes changes no job.
    #[test]
    fn a_stored_job_keeps_the_weights_it_was_created_with() {
        let stored = concat!(
            r#"{"name":"old","namespace":"default","function":"fedavg","config":{},"client_config":{},"#,
            r#""client_config_from_round":{},"update":"weights","tensors":[],"update_dtypes":[],"mode":"sync","rounds":10,"#,
            r#""goal":2,"over_provision":1.3,"min_updates":1,"deadline":"10m","on_shortfall":"retry","#,
            r#""selection":{"policy":"all","where":{},"window":"1s","task_timeout":"2m","preferred_duration":null},"#,
            r#""evaluate":null,"exact":false,"topology":"auto","limits":{"update_bytes":68719476736,"instances":8,"#,
            r#""memory_bytes":16777216,"cpu_ms":60000,"weight_max":1000000000000.0},"checkpoints":{"keep_last":10},"#,
            r#""receipts":"1d"}"#
        );
        let old = read(stored).unwrap();
        assert_eq!(old.weight_max(), 1e12);
        assert_eq!(old.to_json(), stored, "as that release wrote it");
        let new = read(r#"{"name":"old","function":"fedavg"}"#).unwrap();
        assert_eq!(new.weight_max(), 1e9);
        assert_eq!(new.to_json().replace("1000000000.0", "1000000000000.0"), stored, "nothing else has changed");
    }

    /// What a newer release, or one with other limits, has accepted.
    #[test]
    fn a_stored_spec_is_read_whatever_this_release_would_accept() {
        let text = r#"{"name":"a","function":"fedavg","secure":{"t":2},"limits":{"speed":9,"instances":100000},
            "privacy":{"noise":1},"clients":"known","over_provision":1e9,"selection":{"policy":"all","hours":[1]},
            "tensors":[],"topology":{"tree":{"leaves":1000,"middles":0}},"deadline":"1ms"}"#;
        assert!(read(text).is_err());
        let spec = JobSpec::stored(text.as_bytes()).unwrap();
        assert_eq!((spec.limits.instances, spec.over_provision, spec.topology.leaves()), (100_000, 1e9, 1000));
        let shown: Value = serde_json::from_str(&spec.to_json()).unwrap();
        for (place, value) in [
            ("/secure/t", serde_json::json!(2)),
            ("/limits/speed", serde_json::json!(9)),
            ("/privacy/noise", serde_json::json!(1)),
            ("/clients", serde_json::json!("known")),
            ("/selection/hours", serde_json::json!([1])),
        ] {
            assert_eq!(shown.pointer(place), Some(&value), "{place}");
        }
        assert_eq!(JobSpec::stored(spec.to_json().as_bytes()).unwrap(), spec);
        // A patch is judged by what it changes.
        let patch = |patch: SpecPatch| spec.patched(&patch);
        assert_eq!(patch(SpecPatch { rounds: Some(7), ..SpecPatch::default() }).unwrap().unknown, spec.unknown);
        let errors = patch(SpecPatch { rounds: Some(0), ..SpecPatch::default() }).unwrap_err();
        assert_eq!(errors.iter().map(|error| error.field.as_str()).collect::<Vec<_>>(), ["rounds"]);
    }

    #[test]
    fn a_stored_spec_that_cannot_be_understood_says_why() {
        for (text, why) in [
            ("[]", "expected a map"),
            ("{\"name\":\"a\"}", "function: is required"),
            (r#"{"name":"a","function":"f","mode":"eventually"}"#, "mode"),
            (r#"{"name":"a","function":"f","goal":"many"}"#, "goal"),
            (r#"{"name":"a","function":"f","exact":7}"#, "exact"),
        ] {
            let error = JobSpec::stored(text.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
