//! The functions at hand: wasm modules by name and by content, compiled when first asked for.
//!
//! A name stands for what this program carries or a folder holds. A job is pinned to bytes when it is created, so that all
//! nodes, and the programs that come after this one, run the same: from then on its module is looked for by its digest
//! alone. Jobs of before the second feature level name no digest; each node takes what it has under the name.

use crate::modules::Modules;
use catchment_runtime::{Class, Exact, Function, FunctionError, Limits, Runtime, UPDATES_MAX};
use catchment_types::{
    Code, Digest, FunctionClass, FunctionView, JobSpec, Mode, Problem, Rule, TimeMs, Topology, UpdateLayout,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::{fmt, io};
use tokio::sync::Notify;

/// Bytes of one module.
pub const MODULE_BYTES_MAX: u64 = 32 << 20;

struct Module {
    wasm: Vec<u8>,
    digest: Digest,
    compiled: OnceLock<Result<Function, String>>,
    compiling: Mutex<()>,
}

impl Module {
    fn new(wasm: Vec<u8>) -> Arc<Self> {
        let digest = blake3::hash(&wasm).into();
        Arc::new(Self { wasm, digest, compiled: OnceLock::new(), compiling: Mutex::new(()) })
    }
}

/// Who makes partials: a function's bytes, and the version of the contract that they speak. Partials of two makers are
/// never merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// The digest of its module.
    pub function: Digest,
    /// The version of the contract between host and function.
    pub abi: u32,
}

impl fmt::Display for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "function {} (contract version {})", self.function, self.abi)
    }
}

/// The functions that jobs can name.
pub struct Functions {
    runtime: Runtime,
    /// What names stand for here.
    names: BTreeMap<String, Digest>,
    /// Modules in memory.
    modules: Mutex<HashMap<Digest, Arc<Module>>>,
    /// Modules in the data directory.
    kept: Modules,
    /// Told of each module that comes.
    came: Notify,
    checking: Mutex<()>,
}

impl Functions {
    /// Functions from modules that the program carries, and from `*.wasm` files in `dirs`; of one name the later wins. Beside
    /// them those that are kept in `data_dir`, which have no names.
    ///
    /// # Errors
    /// A directory or file that cannot be read, named.
    pub fn load(runtime: Runtime, embedded: &[(&str, &[u8])], dirs: &[&Path], data_dir: &Path) -> io::Result<Self> {
        let (mut names, mut modules) = (BTreeMap::new(), HashMap::new());
        let mut add = |name: &str, wasm: Vec<u8>| {
            let module = Module::new(wasm);
            names.insert(name.to_owned(), module.digest);
            modules.insert(module.digest, module);
        };
        for (name, wasm) in embedded {
            add(name, wasm.to_vec());
        }
        let named =
            |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        for dir in dirs {
            for entry in std::fs::read_dir(dir).map_err(|error| named(dir, error))? {
                let path = entry?.path();
                let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
                if path.extension().is_none_or(|extension| extension != "wasm") {
                    continue;
                }
                if std::fs::metadata(&path)?.len() > MODULE_BYTES_MAX {
                    let problem = format!("{}: a function has at most {MODULE_BYTES_MAX} bytes", path.display());
                    return Err(io::Error::other(problem));
                }
                add(&name, std::fs::read(&path)?);
            }
        }
        let kept = Modules::open(data_dir).map_err(|error| named(data_dir, error))?;
        let modules = Mutex::new(modules);
        Ok(Self { runtime, names, modules, kept, came: Notify::new(), checking: Mutex::default() })
    }

    /// The digest of a job's function.
    pub fn digest(&self, spec: &JobSpec) -> Option<Digest> {
        spec.function_digest().or_else(|| self.names.get(&spec.function).copied())
    }

    /// A job's function, compiled.
    ///
    /// # Errors
    /// `not_ready` when its module is not at hand, `invalid_spec` when its name stands for nothing, `function_refused`.
    pub fn get(&self, spec: &JobSpec) -> Result<Function, Problem> {
        let digest = self.digest(spec).ok_or_else(|| self.unknown(&spec.function))?;
        let module = self.module(digest).ok_or_else(|| lacking(spec))?;
        self.compiled(spec.function_name(), &module)
    }

    fn compiled(&self, name: &str, module: &Module) -> Result<Function, Problem> {
        let _one_at_a_time = module.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled =
            module.compiled.get_or_init(|| self.runtime.load(&module.wasm).map_err(|error| error.to_string()));
        compiled.clone().map_err(|error| {
            Problem::new(Code::FunctionRefused, format!("function `{name}` cannot be loaded: {error}"))
        })
    }

    /// The module with this digest, from memory or the data directory.
    fn module(&self, digest: Digest) -> Option<Arc<Module>> {
        if let Some(module) = self.lock().get(&digest) {
            return Some(module.clone());
        }
        let read = self.kept.read(digest);
        let wasm = read.inspect_err(|error| tracing::warn!(%error, %digest, "read a function's module")).ok()??;
        Some(self.add(wasm))
    }

    /// Takes a module that came from another node.
    pub fn came(&self, wasm: Vec<u8>) {
        self.add(wasm);
        self.came.notify_waiters();
    }

    fn add(&self, wasm: Vec<u8>) -> Arc<Module> {
        let module = Module::new(wasm);
        self.lock().entry(module.digest).or_insert(module).clone()
    }

    /// Whether what a job is pinned to is in memory. Never blocks.
    pub fn is_loaded(&self, spec: &JobSpec) -> bool {
        spec.function_digest().is_none_or(|digest| self.lock().contains_key(&digest))
    }

    /// Whether what a job is pinned to is at hand. Blocks while it is read from the data directory, once.
    pub fn has(&self, spec: &JobSpec) -> bool {
        spec.function_digest().is_none_or(|digest| self.module(digest).is_some())
    }

    /// Whether what a job is pinned to is in the data directory. Never blocks.
    pub fn keeps(&self, spec: &JobSpec) -> bool {
        spec.function_digest().is_none_or(|digest| self.kept.has(digest))
    }

    /// Waits until what a job is pinned to is in memory. The job's task fetches it.
    pub async fn ready(&self, spec: &JobSpec) {
        loop {
            let came = self.came.notified();
            if self.is_loaded(spec) {
                return;
            }
            came.await;
        }
    }

    /// Writes a module that is at hand to the data directory, unless it is there. Blocks.
    ///
    /// # Errors
    /// The data directory refuses it.
    pub fn keep(&self, digest: Digest) -> io::Result<()> {
        match self.module(digest) {
            Some(module) => self.kept.keep(digest, &module.wasm),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no module {digest}"))),
        }
    }

    /// The file of a module, for another node. Blocks.
    ///
    /// # Errors
    /// It is not here, or cannot be written down.
    pub fn file(&self, digest: Digest) -> io::Result<File> {
        self.keep(digest)?;
        self.kept.file(digest)
    }

    /// Sets aside the modules in the data directory that none of these jobs needs; see [`Modules::sweep`].
    ///
    /// # Errors
    /// The data directory cannot be changed.
    pub fn sweep<'a>(&self, now_ms: TimeMs, jobs: impl Iterator<Item = &'a JobSpec>) -> io::Result<()> {
        let needed: HashSet<Digest> = jobs.filter_map(JobSpec::function_digest).collect();
        self.kept.sweep(now_ms, |digest| needed.contains(&digest))
    }

    /// What the function of a spec that is about to be accepted stands for. A digest that it says must be what the name stands
    /// for here, or be of a module that has no name here any more.
    ///
    /// # Errors
    /// `invalid_spec`.
    fn named(&self, spec: &JobSpec) -> Result<Digest, Problem> {
        let name = spec.function_name();
        let (here, said) = (self.names.get(name).copied(), spec.function_digest());
        let is_another = |digest| self.names.values().any(|named| *named == digest);
        match (said, here) {
            (None, Some(here)) => Ok(here),
            (Some(said), Some(here)) if said == here => Ok(said),
            (Some(said), _) if !is_another(said) && self.module(said).is_some() => Ok(said),
            (Some(said), Some(here)) => {
                Err(bad_field("function", format!("`{name}` here has digest {here}, not {said}")))
            }
            (_, None) => Err(self.unknown(name)),
        }
    }

    fn unknown(&self, name: &str) -> Problem {
        let known: Vec<&str> = self.names.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none is loaded".to_owned() } else { known.join(", ") };
        bad_field("function", format!("there is no `{name}`; known: {known}"))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Module>>> {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that a job can run: the function exists, fits the rest of the spec, and takes the config. Gives the
    /// function's digest.
    ///
    /// # Errors
    /// `invalid_spec`, `function_refused`.
    pub fn check(&self, spec: &JobSpec) -> Result<Digest, Problem> {
        let digest = self.named(spec)?;
        let function = self.get(spec)?;
        self.check_counts(spec)?;
        let takes = self.takes(spec)?;
        if takes.gathers() && spec.topology != Topology::Auto {
            let message = format!("function `{}` takes all updates at once; only `auto` fits", spec.function_name());
            return Err(bad_field("topology", message));
        }
        if takes.gathers() && spec.mode != Mode::Sync {
            let message =
                format!("function `{}` takes all updates of a round at once; only `sync` fits", spec.function_name());
            return Err(bad_field("mode", message));
        }
        if !takes.layout.has_coordinates() && spec.tensors.iter().any(|rule| rule.rule == Rule::Max) {
            let message =
                format!("function `{}` takes updates without coordinates, which have no maximum", spec.function_name());
            return Err(bad_field("tensors", message));
        }
        if spec.exact.is_some() && !function.description().exact {
            let message = format!("function `{}` cannot sum exactly; leave `exact` out", spec.function_name());
            return Err(bad_field("exact", message));
        }
        // Many jobs created at once must not take every instance there is.
        let _one_at_a_time = self.checking.lock().unwrap_or_else(PoisonError::into_inner);
        match function.instantiate_with(&Value::Object(spec.config.clone()), exact(spec), limits(spec)) {
            Ok(_) => Ok(digest),
            Err(FunctionError::Refused { reason }) => {
                Err(bad_field("config", format!("function `{}` says: {reason}", spec.function_name())))
            }
            Err(error) => {
                Err(Problem::new(Code::FunctionRefused, format!("function `{}`: {error}", spec.function_name())))
            }
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
        if self.takes(spec)?.gathers() && tasks > UPDATES_MAX as u64 {
            let message = format!(
                "function `{}` takes at most {UPDATES_MAX} updates at once; a round has up to {tasks} \
                 (goal · over_provision)",
                spec.function_name()
            );
            return Err(bad_field("goal", message));
        }
        Ok(())
    }

    /// What the function that a spec names takes.
    ///
    /// # Errors
    /// `not_found`, `function_refused`.
    pub fn takes(&self, spec: &JobSpec) -> Result<Takes, Problem> {
        let function = self.get(spec)?;
        let name = spec.function_name();
        let refused = |why: String| Problem::new(Code::FunctionRefused, format!("function `{name}`: {why}"));
        let description = function.description();
        let layout = UpdateLayout::deserialize(&description.update_layout);
        let layout = layout.map_err(|error| refused(format!("its update layout: {error}")))?;
        if layout.has_coordinates() == (description.class == Class::Whole) {
            let class = description.class.as_str();
            return Err(refused(format!("updates of the class {class} do not have that layout")));
        }
        let function = self.digest(spec).expect("it was just found");
        Ok(Takes { class: description.class, layout, maker: Maker { function, abi: description.abi } })
    }

    /// Whether the function takes a round's updates all at once. `false` too while it is not compiled: this never waits.
    pub fn gathers(&self, spec: &JobSpec) -> bool {
        let module = self.digest(spec).and_then(|digest| self.lock().get(&digest).cloned());
        let is_additive = |function: &Function| function.description().class == Class::Additive;
        module.is_some_and(|module| matches!(module.compiled.get(), Some(Ok(function)) if !is_additive(function)))
    }

    /// Every function that loads, by name.
    pub fn list(&self) -> Vec<FunctionView> {
        let described = |(name, digest): (&String, &Digest)| {
            let module = self.module(*digest)?;
            let function =
                self.compiled(name, &module).inspect_err(|error| tracing::warn!(%error, "describe function")).ok()?;
            let description = function.description();
            let help = description.config.iter().map(|field| format!("{}: {}", field.name, field.help));
            Some(FunctionView {
                name: name.clone(),
                version: description.version.clone(),
                digest: *digest,
                class: description.class.as_str().replace('-', "_"),
                exact: description.exact,
                summary: description.summary.clone(),
                config_help: help.collect::<Vec<_>>().join("\n"),
            })
        };
        self.names.iter().filter_map(described).collect()
    }
}

/// What updates a function takes, and how.
#[derive(Debug, Clone)]
pub struct Takes {
    class: Class,
    /// What they look like.
    pub layout: UpdateLayout,
    /// Who makes partials of them.
    pub maker: Maker,
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

/// What a job is pinned to is not at hand.
pub fn lacking(spec: &JobSpec) -> Problem {
    let detail = format!(
        "this node lacks the module of function `{}`; start this node or another one with a folder (--functions DIR) in \
         which a *.wasm file has that digest, under any name",
        spec.function
    );
    Problem::new(Code::NotReady, detail)
}

/// A spec that this node cannot run, with the field to blame.
fn bad_field(field: &str, message: String) -> Problem {
    let fields = serde_json::json!([{ "field": field, "message": message }]);
    Problem::new(Code::InvalidSpec, format!("{field}: {message}")).with("fields", fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use catchment_runtime::RuntimeConfig;

    fn digest(wasm: &[u8]) -> Digest {
        blake3::hash(wasm).into()
    }

    fn spec(function: &str) -> JobSpec {
        JobSpec::from_json(format!(r#"{{"name":"a","function":"{function}"}}"#).as_bytes()).unwrap()
    }

    /// A program that carries `embedded`, started on `data`.
    fn open(data: &Path, embedded: &[(&str, &[u8])]) -> Functions {
        let runtime = Runtime::new(RuntimeConfig { instances_max: 1, ..RuntimeConfig::default() }).unwrap();
        Functions::load(runtime, embedded, &[], data).unwrap()
    }

    #[test]
    fn a_name_stands_for_the_newest_and_a_digest_for_the_same_bytes_for_ever() {
        let data = tempfile::tempdir().unwrap();
        let (old, new, other) = (digest(b"old"), digest(b"new"), digest(b"other"));
        let pinned = |digest: Digest| spec(&format!("mean@{digest}"));
        let before = open(data.path(), &[("mean", b"old"), ("other", b"other")]);
        assert_eq!((before.digest(&spec("mean")), before.named(&spec("mean")).unwrap()), (Some(old), old));
        assert!(before.has(&pinned(old)) && !before.keeps(&pinned(old)));
        before.keep(old).unwrap();
        assert!(before.keeps(&pinned(old)));

        let after = open(data.path(), &[("mean", b"new"), ("other", b"other")]);
        assert_eq!(after.named(&spec("mean")).unwrap(), new);
        assert_eq!(after.digest(&pinned(old)), Some(old));
        assert_eq!(after.module(old).unwrap().wasm, b"old");
        assert!(after.has(&pinned(old)) && after.has(&pinned(new)) && after.has(&spec("nosuch")));
        // A new job may say the old one, and no name of another.
        assert_eq!(after.named(&pinned(old)).unwrap(), old);
        let refused = after.named(&pinned(other)).unwrap_err();
        assert!(refused.status == 422 && refused.detail.contains(&new.to_string()), "{}", refused.detail);
        let refused = after.named(&spec(&format!("nosuch@{other}"))).unwrap_err();
        assert!(refused.detail.contains("there is no `nosuch`; known: mean, other"), "{}", refused.detail);
    }

    #[tokio::test]
    async fn what_is_lacking_is_named_and_waited_for() {
        let data = tempfile::tempdir().unwrap();
        let functions = open(data.path(), &[("mean", b"new")]);
        let job = spec(&format!("mean@{}", digest(b"old")));
        let lacking = functions.get(&job).unwrap_err();
        assert!(lacking.status == 503 && lacking.detail.contains(&job.function), "{}", lacking.detail);
        assert!(!functions.has(&job) && !functions.gathers(&job) && functions.keep(digest(b"old")).is_err());
        let ((), ()) = tokio::join!(functions.ready(&job), async {
            tokio::task::yield_now().await;
            functions.came(b"something else".to_vec());
            tokio::task::yield_now().await;
            functions.came(b"old".to_vec());
        });
        functions.file(digest(b"old")).unwrap();
        assert!(functions.keeps(&job));
    }

    #[test]
    fn only_jobs_that_are_pinned_need_a_module() {
        let data = tempfile::tempdir().unwrap();
        let functions = open(data.path(), &[("mean", b"old"), ("other", b"other")]);
        let (old, other) = (spec(&format!("mean@{}", digest(b"old"))), spec(&format!("other@{}", digest(b"other"))));
        for wasm in [&b"old"[..], b"other"] {
            functions.keep(digest(wasm)).unwrap();
        }
        functions.sweep(7, [&old, &spec("other")].into_iter()).unwrap();
        assert!(functions.keeps(&old) && !functions.keeps(&other));
    }
}
