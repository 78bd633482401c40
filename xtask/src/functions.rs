//! `xtask functions`: every crate under `functions/` as a wasm module.

use crate::machine::Machine;
use crate::toolchain::{Toolchain, WASM_TARGET};
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// SIMD is what makes functions fast. Bulk memory is left out, by starting from the oldest processor and naming what
/// is wanted: its instructions trap on windows, which lie above the module's own memory, where plain loads and stores
/// work.
///
/// Memory for what a call allocates is there from the start: growing it would cost every instance two changes of its
/// address space, when it needs more and when its slot is cleared for the next.
const RUST_FLAGS: &str = "-Ctarget-cpu=mvp -Ctarget-feature=+simd128,+sign-ext,+nontrapping-fptoint,+mutable-globals \
    -Clink-arg=--initial-heap=131072";

#[derive(clap::Args)]
pub struct Arguments {
    /// Where the modules go [default: functions/ in the build folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Install a toolchain when there is none or all are too old (apt-get, as root); also when the variable CI is set
    #[arg(long)]
    install: bool,
}

/// One function's crate.
struct Function {
    /// Name of the folder, and of the module.
    name: String,
    /// Name of the package.
    package: String,
}

/// Builds the modules and says where they are.
pub fn run(arguments: &Arguments) -> Result<()> {
    let install = arguments.install || std::env::var_os("CI").is_some();
    let toolchain = Toolchain::find_or_install(&Machine::this(), install)?;
    let functions = functions()?;
    let target_dir = workspace::target_dir();
    let wasm_dir = target_dir.join("wasm");
    build(&toolchain, &functions, &wasm_dir)?;

    let out = arguments.out.clone().unwrap_or_else(|| target_dir.join("functions"));
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    for function in &functions {
        let file = format!("{}.wasm", function.package.replace('-', "_"));
        let built = wasm_dir.join(WASM_TARGET).join("release").join(file);
        let to = out.join(format!("{}.wasm", function.name));
        let bytes = workspace::copy_if_changed(&built, &to)?;
        println!("{} ({} KiB)", to.display(), bytes.div_ceil(1024));
    }
    Ok(())
}

fn build(toolchain: &Toolchain, functions: &[Function], wasm_dir: &Path) -> Result<()> {
    let mut cargo = toolchain.cargo_build();
    cargo.current_dir(workspace::root()).args(["--release", "--locked", "--lib", "--target-dir"]).arg(wasm_dir);
    for function in functions {
        cargo.args(["--package", &function.package]);
    }
    // Paths of this machine would otherwise end up in panic texts, and so in a module's digest.
    let home = cargo_home().map(|home| format!(" --remap-path-prefix={}=cargo", home.display())).unwrap_or_default();
    let root = workspace::root().display();
    cargo.env("RUSTFLAGS", format!("{RUST_FLAGS} --remap-path-prefix={root}=.{home}"));
    // The workspace's release profile is made for tests on the host.
    for (name, value) in [
        ("OPT_LEVEL", "3"),
        ("LTO", "fat"),
        ("CODEGEN_UNITS", "1"),
        ("PANIC", "abort"),
        ("DEBUG", "0"),
        ("STRIP", "symbols"),
        ("OVERFLOW_CHECKS", "false"),
        ("INCREMENTAL", "false"),
    ] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    let status = cargo.status().context("run cargo")?;
    if !status.success() {
        bail!("building the functions with {toolchain} failed");
    }
    Ok(())
}

/// The crates under `functions/`.
fn functions() -> Result<Vec<Function>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(workspace::root())
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let home = workspace::root().join("functions");
    let mut functions = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let manifest = Path::new(package["manifest_path"].as_str().context("a package has a manifest")?);
        let Some(folder) = manifest.parent().filter(|folder| folder.parent() == Some(&home)) else { continue };
        functions.push(Function {
            name: folder.file_name().context("a function has a folder")?.to_string_lossy().into_owned(),
            package: package["name"].as_str().context("a package has a name")?.to_string(),
        });
    }
    functions.sort_by(|a, b| a.name.cmp(&b.name));
    if functions.is_empty() {
        bail!("there is no crate under {}", home.display());
    }
    Ok(functions)
}

fn cargo_home() -> Option<PathBuf> {
    let set = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    set.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}
