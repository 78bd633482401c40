//! Where the compiled kernel programs come from: this binary, or a folder.

use std::borrow::Cow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Programs that were embedded when this crate was built.
const EMBEDDED: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/ebpf.rs"));

/// Where programs are looked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Objects {
    /// A folder that goes before everything else.
    pub(crate) folder: Option<PathBuf>,
}

impl Objects {
    /// A program by its name. Without a folder, and unless it was embedded, it is looked for where `xtask ebpf` puts it:
    /// in `ebpf`, near this executable in the build folder.
    pub(crate) fn find(&self, name: &str) -> Result<Cow<'static, [u8]>, String> {
        if let Some(folder) = &self.folder {
            return read(folder, name).map_err(|error| format!("{}: {error}", folder.join(name).display()));
        }
        if let Some((_, bytes)) = EMBEDDED.iter().find(|(embedded, _)| *embedded == name) {
            return Ok(Cow::Borrowed(bytes));
        }
        near_executable(name)
            .ok_or_else(|| "this build carries none (`cargo run --release -p xtask -- ebpf` builds them)".to_string())
    }
}

/// Only from the executable's own owner: what is loaded here runs in the kernel.
fn near_executable(name: &str) -> Option<Cow<'static, [u8]>> {
    let executable = std::env::current_exe().ok()?;
    let owner = executable.metadata().ok()?.uid();
    let folders = executable.ancestors().skip(2).take(2).map(|folder| folder.join("ebpf"));
    let owned = |path: &Path| path.metadata().is_ok_and(|metadata| metadata.uid() == owner);
    let mut trusted = folders.filter(|folder| owned(folder) && owned(&folder.join(name).with_extension("o")));
    trusted.find_map(|folder| read(&folder, name).ok())
}

fn read(folder: &Path, name: &str) -> std::io::Result<Cow<'static, [u8]>> {
    std::fs::read(folder.join(name).with_extension("o")).map(Cow::Owned)
}
