//! The model versions of a job.

use catchment_types::{ModelCommit, TimeMs};
use std::collections::BTreeMap;

/// Versions that are listed, the newest, beside those whose files are kept. Older ones are forgotten: a job may make one a
/// second for years.
pub const LISTED_MAX: u64 = 10_000;

/// A model version of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// What was committed.
    pub commit: ModelCommit,
    /// The round that made it; `None` for the initial model.
    pub round: Option<u64>,
    /// When.
    pub at_ms: TimeMs,
}

/// The model versions of a job, as far as they are not forgotten.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Models(BTreeMap<u64, Model>);

impl Models {
    /// The newest one.
    pub fn newest(&self) -> Option<&Model> {
        self.0.last_key_value().map(|(_, model)| model)
    }

    /// The one of this version.
    pub fn version(&self, version: u64) -> Option<&Model> {
        self.0.get(&version)
    }

    /// The version that is made next, which is how many there have been.
    pub fn next(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(newest, _)| newest + 1)
    }

    /// All that are known, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Model> {
        self.0.values()
    }

    /// Whether there is none yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a version.
    pub(crate) fn push(&mut self, model: Model) {
        self.0.insert(model.commit.version, model);
    }

    /// Forgets what is before this version, but for what `keeps` says.
    pub(crate) fn forget(&mut self, before: u64, keeps: impl Fn(u64) -> bool) {
        let old: Vec<u64> = self.0.range(..before).map(|(version, _)| *version).filter(|old| !keeps(*old)).collect();
        old.iter().for_each(|version| drop(self.0.remove(version)));
    }
}

impl FromIterator<Model> for Models {
    fn from_iter<I: IntoIterator<Item = Model>>(models: I) -> Self {
        Self(models.into_iter().map(|model| (model.commit.version, model)).collect())
    }
}
