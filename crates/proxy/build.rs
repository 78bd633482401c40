//! Embeds kernel programs that were built before: every `*.o` in `$CATCHMENT_EMBED_EBPF`. Builds nothing itself, so a
//! plain `cargo build` works too; the programs are then found at run time, or not at all.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=CATCHMENT_EMBED_EBPF");
    let mut list = String::from("[\n");
    if let Some(dir) = env::var_os("CATCHMENT_EMBED_EBPF").map(PathBuf::from) {
        println!("cargo::rerun-if-changed={}", dir.display());
        let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("read {}: {error}", dir.display()));
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "o")) {
            println!("cargo::rerun-if-changed={}", file.display());
            let name = file.file_stem().and_then(|stem| stem.to_str()).expect("a name in UTF-8");
            let path = file.display().to_string();
            writeln!(list, "    ({name:?}, aya::include_bytes_aligned!({path:?})),").expect("a string grows");
        }
    }
    list.push(']');
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("ebpf.rs");
    fs::write(&out, list).unwrap_or_else(|error| panic!("write {}: {error}", out.display()));
}
