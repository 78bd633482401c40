//! What a directory left by an earlier process means.
//!
//! First everything is read and nothing changed, so that files of a newer version stop the start before any harm;
//! only then is the directory put in order. Without this step an accepted update would be lost with its process.

use crate::accumulator::Accumulator;
use crate::directory::Directory;
use crate::error::SlabError;
use crate::header::{Header, Kind, Page, State, VERSION};
use crate::shared::{Hold, Inner};
use crate::slab::Slab;
use crate::store::Recovered;
use crate::table::{Facts, Place, Table};
use std::path::PathBuf;
use std::sync::Arc;

/// Most foreign names that are warned about one by one.
const FOREIGN_NAMED_MAX: usize = 16;

/// Everything in the directory, read and sorted.
#[derive(Debug, Default)]
struct Survey {
    kept: Vec<Header>,
    free: Vec<Place>,
    /// Files to unlink: the index, and what is wrong with it, if anything is.
    unlink: Vec<(u32, Option<String>)>,
    foreign: Vec<PathBuf>,
    /// Past every index that names a file.
    index_end: u64,
}

/// What is to be handed to the caller, entered in the books with one hold each.
#[derive(Debug, Default)]
pub(crate) struct Found {
    slabs: Vec<Arc<Facts>>,
    accumulators: Vec<Header>,
}

/// Reads the directory, puts it in order, and makes the books for it.
pub(crate) fn recover(directory: &Directory, budget_bytes: u64) -> Result<(Table, Found), SlabError> {
    let survey = survey(directory)?;
    directory.record().skip_to(survey.index_end)?;
    report_foreign(&survey.foreign);
    for (index, reason) in survey.unlink {
        if let Some(reason) = reason {
            let path = directory.slab_path(index);
            tracing::warn!(path = %path.display(), reason, "a damaged slab is removed");
        }
        directory.unlink_slab(index);
    }
    let mut table = Table::new(budget_bytes);
    let mut found = Found::default();
    for header in survey.kept {
        match header.kind {
            Kind::Update => {
                let Header { id, file_bytes, extent, meta, .. } = header;
                let facts = Arc::new(Facts { id, file_bytes, extent, meta });
                table.enter_frozen(&facts);
                found.slabs.push(facts);
            }
            Kind::Accumulator => {
                table.enter_accumulator(place_of(&header));
                found.accumulators.push(header);
            }
        }
    }
    reuse(directory, &mut table, survey.free);
    if table.usage().in_use_bytes() > budget_bytes {
        let in_use_bytes = table.usage().in_use_bytes();
        tracing::warn!(in_use_bytes, budget_bytes, "the slabs found exceed the budget; none is granted until they fit");
    }
    Ok((table, found))
}

fn survey(directory: &Directory) -> Result<Survey, SlabError> {
    let mut survey = Survey::default();
    for entry in directory.entries()? {
        if let Some(index) = entry.index {
            survey.index_end = survey.index_end.max(u64::from(index) + 1);
        }
        let Some(index) = entry.index.filter(|_| entry.is_file) else {
            survey.foreign.push(entry.path);
            continue;
        };
        let (page, len) = directory.read_page(index)?;
        match page {
            Page::Newer(found) => {
                return Err(SlabError::NewerVersion { path: directory.slab_path(index), found, known: VERSION });
            }
            Page::Blank => survey.unlink.push((index, None)),
            Page::Damaged(reason) => survey.unlink.push((index, Some(reason.to_owned()))),
            Page::Whole(header, _) if header.id.index() != index => {
                survey.unlink.push((index, Some(format!("it is a copy of slab {}", header.id))));
            }
            Page::Whole(header, _) if header.file_bytes != len => {
                let reason = format!("it has {len} bytes and was made with {}", header.file_bytes);
                survey.unlink.push((index, Some(reason)));
            }
            Page::Whole(header, State::Kept) => survey.kept.push(header),
            Page::Whole(header, State::Free | State::Writing) => {
                survey.free.push(place_of(&header));
            }
        }
    }
    survey.kept.sort_by_key(|header| header.id.index());
    Ok(survey)
}

/// The file of a header. Whose it was is not written down.
fn place_of(header: &Header) -> Place {
    Place { id: header.id, file_bytes: header.file_bytes, kind: header.kind, owner: None }
}

/// Keeps free files for reuse as far as the budget goes, and unlinks the rest.
fn reuse(directory: &Directory, table: &mut Table, free: Vec<Place>) {
    for place in free {
        let usage = table.usage();
        let after = usage.in_use_bytes().saturating_add(usage.free_bytes).saturating_add(place.file_bytes);
        if after <= usage.budget_bytes && place.id.generation() < u32::MAX {
            table.enter_free(place);
        } else {
            directory.unlink_slab(place.id.index());
        }
    }
}

fn report_foreign(foreign: &[PathBuf]) {
    for path in foreign.iter().take(FOREIGN_NAMED_MAX) {
        tracing::warn!(path = %path.display(), "not a slab; it is left alone and counted by no budget");
    }
    if let Some(more @ 1..) = foreign.len().checked_sub(FOREIGN_NAMED_MAX) {
        tracing::warn!(more, "further names in the store are no slabs");
    }
}

impl Found {
    /// Makes a handle for every hold the books have.
    pub(crate) fn into_handles(self, store: &Arc<Inner>) -> Result<Recovered, SlabError> {
        let hold = |id| Hold { store: Arc::clone(store), id };
        let slabs = self.slabs.into_iter().map(|facts| Slab::new(hold(facts.id), facts)).collect();
        let mut accumulators = Vec::with_capacity(self.accumulators.len());
        for header in self.accumulators {
            let hold = hold(header.id);
            let file = store.directory.open_to_write(header.id.index(), header.file_bytes)?;
            accumulators.push(Accumulator::new(hold, file, header.extent, header.meta)?);
        }
        Ok(Recovered { slabs, accumulators })
    }
}
