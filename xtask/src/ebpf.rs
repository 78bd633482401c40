//! `xtask ebpf`: the kernel programs under `ebpf/`, one object each.
//!
//! The platform works without them, over Unix sockets. So with `--optional` a machine that cannot build it is told how it
//! could, and the rest goes on.

mod toolchain;

use crate::machine::Machine;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use toolchain::Linker;

pub use toolchain::{TARGET, Toolchain, apt_line};

/// The programs, as `ebpf/Cargo.toml` names them.
const PROGRAMS: [&str; 2] = ["meter", "route"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Where the objects go [default: ebpf/ in the build folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Install a toolchain when there is none or all are too old (apt-get, as root); also when the variable CI is set
    #[arg(long)]
    install: bool,
    /// Go on without the objects when they cannot be built
    #[arg(long)]
    optional: bool,
}

/// Builds the objects and says where they are.
pub fn run(arguments: &Arguments) -> Result<()> {
    let out = arguments.out.clone().unwrap_or_else(|| workspace::target_dir().join("ebpf"));
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let install = arguments.install || std::env::var_os("CI").is_some();
    let toolchain = Toolchain::find_or_install(&Machine::this(), install);
    match toolchain.and_then(|toolchain| build(&toolchain, &out)) {
        Err(error) if arguments.optional => {
            // Those that were built from older sources must not be taken for these.
            for program in PROGRAMS {
                fs::remove_file(out.join(program).with_extension("o")).ok();
            }
            println!("note: descriptors will go over Unix sockets, not through the kernel: {error:#}");
            Ok(())
        }
        result => result,
    }
}

fn build(toolchain: &Toolchain, out: &Path) -> Result<()> {
    let target_dir = workspace::target_dir().join("ebpf-build");
    fs::create_dir_all(&target_dir).with_context(|| format!("create {}", target_dir.display()))?;
    let mut cargo = toolchain.cargo_build();
    cargo.current_dir(workspace::root().join("ebpf")).args(["--release", "--locked", "--target-dir"]).arg(&target_dir);
    cargo.env("RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH));
    let linker = match toolchain.linker() {
        Linker::Bpf(program) => program.clone(),
        Linker::Compiler { llc, strip } => write_linker(&target_dir, llc, strip)?,
    };
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    let status = cargo.status().context("run cargo")?;
    if !status.success() {
        bail!("building the kernel programs with {toolchain} failed");
    }
    for program in PROGRAMS {
        let built = target_dir.join(TARGET).join("release").join(program);
        let to = out.join(program).with_extension("o");
        let bytes = workspace::copy_if_changed(&built, &to)?;
        println!("{} ({} KiB)", to.display(), bytes.div_ceil(1024));
    }
    Ok(())
}

/// With link-time optimisation rustc hands over one object of bitcode, so that compiling it is all there is to link.
/// The library's debug information names paths of the machine it was compiled on, and nobody reads it.
fn write_linker(dir: &Path, llc: &Path, strip: &Path) -> Result<PathBuf> {
    let script = format!(
        "#!/bin/sh\n\
         while [ $# -gt 0 ]; do\n\
         case \"$1\" in -o) out=\"$2\"; shift ;; --cpu|--export-symbols|-L) shift ;; *.o) in=\"$1\" ;; esac\n\
         shift\n\
         done\n\
         '{}' -march=bpf -mcpu=v3 -filetype=obj -o \"$out\" \"$in\" && '{}' --strip-debug \"$out\"\n",
        llc.display(),
        strip.display()
    );
    let path = dir.join("link.sh");
    fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} a program", path.display()))?;
    Ok(path)
}
