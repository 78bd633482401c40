//! Embeds wasm functions that were built before: every `*.wasm` in `$CATCHMENT_EMBED_FUNCTIONS`. Builds nothing itself,
//! so a plain `cargo build` works too; the binary then finds functions at run time.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=CATCHMENT_EMBED_FUNCTIONS");
    let mut list = String::from("[\n");
    if let Some(dir) = env::var_os("CATCHMENT_EMBED_FUNCTIONS").map(PathBuf::from) {
        println!("cargo::rerun-if-changed={}", dir.display());
        let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("read {}: {error}", dir.display()));
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "wasm")) {
            println!("cargo::rerun-if-changed={}", file.display());
            let name = file.file_stem().and_then(|stem| stem.to_str()).expect("a name in UTF-8");
            writeln!(list, "    ({name:?}, include_bytes!({:?})),", file.display().to_string())
                .expect("a string grows");
        }
    }
    list.push(']');
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("functions.rs");
    fs::write(&out, list).unwrap_or_else(|error| panic!("write {}: {error}", out.display()));
}
