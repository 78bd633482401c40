//! Where the compiled kernel programs come from: this binary, or a folder.

use std::borrow::Cow;
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
        let executable = std::env::current_exe().unwrap_or_default();
        let near = executable.ancestors().skip(2).take(2).map(|folder| folder.join("ebpf"));
        let found = near.into_iter().find_map(|folder| read(&folder, name).ok());
        found.ok_or_else(|| "this build carries none (`cargo run --release -p xtask -- ebpf` builds them)".to_string())
    }
}

fn read(folder: &Path, name: &str) -> std::io::Result<Cow<'static, [u8]>> {
    std::fs::read(folder.join(name).with_extension("o")).map(Cow::Owned)
}
