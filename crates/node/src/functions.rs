//! The functions at hand: wasm modules by name, compiled when first asked for.

use catchment_runtime::{Class, Exact, Function, FunctionError, Limits, Runtime, UPDATES_MAX};
use catchment_types::{
    Code, Digest, FunctionClass, FunctionView, JobSpec, Mode, Problem, Rule, Topology, UpdateLayout,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Bytes of one module.
const MODULE_BYTES_MAX: u64 = 32 << 20;

struct Module {
    wasm: Vec<u8>,
    digest: Digest,
    compiled: OnceLock<Result<Function, String>>,
    compiling: Mutex<()>,
}

/// The functions that jobs can name.
pub struct Functions {
    runtime: Runtime,
    modules: BTreeMap<String, Module>,
    checking: Mutex<()>,
}

impl Functions {
    /// Functions from modules that the program carries, and from `*.wasm` files in `dirs`; later ones win.
    ///
    /// # Errors
    /// A directory or file that cannot be read, named.
    pub fn load(runtime: Runtime, embedded: &[(&str, &[u8])], dirs: &[&Path]) -> std::io::Result<Self> {
        let mut modules = BTreeMap::new();
        let mut add = |name: &str, wasm: Vec<u8>| {
            let digest = blake3::hash(&wasm).into();
            modules
                .insert(name.to_owned(), Module { wasm, digest, compiled: OnceLock::new(), compiling: Mutex::new(()) });
        };
        for (name, wasm) in embedded {
            add(name, wasm.to_vec());
        }
        for dir in dirs {
            let named =
                |error: std::io::Error| std::io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
            for entry in std::fs::read_dir(dir).map_err(named)? {
                let path = entry?.path();
                let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
                if path.extension().is_none_or(|extension| extension != "wasm") {
                    continue;
                }
                if std::fs::metadata(&path)?.len() > MODULE_BYTES_MAX {
                    let problem = format!("{}: a function has at most {MODULE_BYTES_MAX} bytes", path.display());
                    return Err(std::io::Error::other(problem));
                }
                add(&name, std::fs::read(&path)?);
            }
        }
        Ok(Self { runtime, modules, checking: Mutex::default() })
    }

    /// The digest of the module that a spec's `function` names.
    pub fn digest(&self, reference: &str) -> Option<Digest> {
        self.module(reference).ok().map(|(_, module)| module.digest)
    }

    /// The compiled function that a spec's `function` names.
    ///
    /// # Errors
    /// `not_found`, `function_refused`.
    pub fn get(&self, reference: &str) -> Result<Function, Problem> {
        let (name, module) = self.module(reference)?;
        let _one_at_a_time = module.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled =
            module.compiled.get_or_init(|| self.runtime.load(&module.wasm).map_err(|error| error.to_string()));
        compiled.clone().map_err(|error| {
            Problem::new(Code::FunctionRefused, format!("function `{name}` cannot be loaded: {error}"))
        })
    }

    fn module(&self, reference: &str) -> Result<(&str, &Module), Problem> {
        let (name, pinned) = match reference.split_once('@') {
            Some((name, digest)) => (name, digest.parse::<Digest>().ok()),
            None => (reference, None),
        };
        let Some((name, module)) = self.modules.get_key_value(name) else {
            let known: Vec<&str> = self.modules.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none is loaded".to_owned() } else { known.join(", ") };
            return Err(bad_field("function", format!("there is no `{name}`; known: {known}")));
        };
        match pinned {
            Some(digest) if digest != module.digest => {
                Err(bad_field("function", format!("`{name}` here has digest {}, not {digest}", module.digest)))
            }
            _ => Ok((name, module)),
        }
    }

    /// Checks that a job can run: the function exists, fits the rest of the spec, and takes the config.
    ///
    /// # Errors
    /// `invalid_spec`, `function_refused`.
    pub fn check(&self, spec: &JobSpec) -> Result<(), Problem> {
        let function = self.get(&spec.function)?;
        self.check_counts(spec)?;
        let takes = self.takes(&spec.function)?;
        if takes.gathers() && spec.topology != Topology::Auto {
            let message = format!("function `{}` takes all updates at once; only `auto` fits", spec.function);
            return Err(bad_field("topology", message));
        }
        if takes.gathers() && spec.mode != Mode::Sync {
            let message =
                format!("function `{}` takes all updates of a round at once; only `sync` fits", spec.function);
            return Err(bad_field("mode", message));
        }
        if !takes.layout.has_coordinates() && spec.tensors.iter().any(|rule| rule.rule == Rule::Max) {
            let message =
                format!("function `{}` takes updates without coordinates, which have no maximum", spec.function);
            return Err(bad_field("tensors", message));
        }
        if spec.exact.is_some() && !function.description().exact {
            let message = format!("function `{}` cannot sum exactly; leave `exact` out", spec.function);
            return Err(bad_field("exact", message));
        }
        // Many jobs created at once must not take every instance there is.
        let _one_at_a_time = self.checking.lock().unwrap_or_else(PoisonError::into_inner);
        match function.instantiate_with(&Value::Object(spec.config.clone()), exact(spec), limits(spec)) {
            Ok(_) => Ok(()),
            Err(FunctionError::Refused { reason }) => {
                Err(bad_field("config", format!("function `{}` says: {reason}", spec.function)))
            }
            Err(error) => Err(Problem::new(Code::FunctionRefused, format!("function `{}`: {error}", spec.function))),
        }
    }

    /// Checks that a round of the job has no more updates than its function can take.
    ///
    /// # Errors
    /// `invalid_spec`.
    pub fn check_counts(&self, spec: &JobSpec) -> Result<(), Problem> {
        if let Some(problem) = spec.too_many_updates() {
            return Err(bad_field("exact.updates_max", problem));
        }
        let tasks = spec.tasks_per_round();
        if self.takes(&spec.function)?.gathers() && tasks > UPDATES_MAX as u64 {
            let message = format!(
                "function `{}` takes at most {UPDATES_MAX} updates at once; a round has up to {tasks} \
                 (goal · over_provision)",
                spec.function
            );
            return Err(bad_field("goal", message));
        }
        Ok(())
    }

    /// What the function that a spec names takes.
    ///
    /// # Errors
    /// `not_found`, `function_refused`.
    pub fn takes(&self, reference: &str) -> Result<Takes, Problem> {
        let function = self.get(reference)?;
        let refused = |why: String| Problem::new(Code::FunctionRefused, format!("function `{reference}`: {why}"));
        let description = function.description();
        let layout = UpdateLayout::deserialize(&description.update_layout);
        let layout = layout.map_err(|error| refused(format!("its update layout: {error}")))?;
        if layout.has_coordinates() == (description.class == Class::Whole) {
            let class = description.class.as_str();
            return Err(refused(format!("updates of the class {class} do not have that layout")));
        }
        Ok(Takes { class: description.class, layout })
    }

    /// Whether the function takes a round's updates all at once. `false` too while it is not compiled: this never waits.
    pub fn gathers(&self, reference: &str) -> bool {
        let compiled = self.module(reference).ok().and_then(|(_, module)| module.compiled.get()?.as_ref().ok());
        compiled.is_some_and(|function| function.description().class != Class::Additive)
    }

    /// Every function that loads, by name.
    pub fn list(&self) -> Vec<FunctionView> {
        let described = |(name, module): (&String, &Module)| {
            let function = self.get(name).inspect_err(|error| tracing::warn!(%error, "describe function")).ok()?;
            let description = function.description();
            let help = description.config.iter().map(|field| format!("{}: {}", field.name, field.help));
            Some(FunctionView {
                name: name.clone(),
                version: description.version.clone(),
                digest: module.digest,
                class: description.class.as_str().replace('-', "_"),
                exact: description.exact,
                summary: description.summary.clone(),
                config_help: help.collect::<Vec<_>>().join("\n"),
            })
        };
        self.modules.iter().filter_map(described).collect()
    }
}

/// What updates a function takes, and how.
#[derive(Debug, Clone)]
pub struct Takes {
    class: Class,
    /// What they look like.
    pub layout: UpdateLayout,
}

impl Takes {
    /// What the function may be asked to do.
    pub fn class(&self) -> FunctionClass {
        match self.class {
            Class::Additive => FunctionClass::Additive,
            Class::CoordinateWise => FunctionClass::CoordinateWise,
            Class::TwoPhase => FunctionClass::TwoPhase,
            Class::Whole => FunctionClass::Whole,
        }
    }

    /// Whether it takes all updates of a round at once, rather than folding each as it comes.
    pub fn gathers(&self) -> bool {
        self.class != Class::Additive
    }
}

/// What one instance of a job's function may use.
pub fn limits(spec: &JobSpec) -> Limits {
    Limits { heap_bytes: spec.limits.memory_bytes, cpu_ms: spec.limits.cpu_ms }
}

/// How a job's sums are rounded, when they are exact.
pub fn exact(spec: &JobSpec) -> Option<Exact> {
    spec.exact.map(|exact| Exact { exponent: exact.exponent(), weight_max: exact.weight_max })
}

/// A spec that this node cannot run, with the field to blame.
fn bad_field(field: &str, message: String) -> Problem {
    let fields = serde_json::json!([{ "field": field, "message": message }]);
    Problem::new(Code::InvalidSpec, format!("{field}: {message}")).with("fields", fields)
}
