//! Folders in one file: a tar archive, compressed once for each `.gz` of its name. Twice takes what repeats itself over
//! and over to almost nothing.

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

fn times(archive: &Path) -> usize {
    archive.display().to_string().matches(".gz").count()
}

fn tar(folder: &Path, flags: &str) -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", flags, "-", "-C"]).arg(folder);
    tar
}

/// Packs what is in a folder.
pub fn pack(folder: &Path, archive: &Path) {
    let output = tar(folder, "-cf").arg(".").output().expect("run tar");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut bytes = output.stdout;
    for _ in 0..times(archive) {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(&bytes).expect("compress");
        bytes = packed.finish().expect("compress");
    }
    std::fs::write(archive, bytes).expect("write an archive");
}

/// Unpacks an archive into a folder.
pub fn unpack(archive: &Path, folder: &Path) {
    let mut bytes = std::fs::read(archive).unwrap_or_else(|error| panic!("{}: {error}", archive.display()));
    for _ in 0..times(archive) {
        let packed = std::mem::take(&mut bytes);
        GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).expect("decompress");
    }
    let mut tar =
        Command::new("tar").args(["-xf", "-", "-C"]).arg(folder).stdin(Stdio::piped()).spawn().expect("run tar");
    tar.stdin.take().expect("piped").write_all(&bytes).expect("feed tar");
    assert!(tar.wait().expect("wait for tar").success(), "{} does not unpack", archive.display());
}
