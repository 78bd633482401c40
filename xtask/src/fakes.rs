//! Machines for tests: folders with compilers and tools that say what a test wants them to say.

use crate::ebpf;
use crate::machine::Machine;
use crate::toolchain::WASM_TARGET;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Too old for the workspace.
pub const OLD: &str = "1.85.0";
/// New enough, whatever the workspace comes to want.
pub const NEW: &str = "9.96.0";

/// A machine without anything, to begin with.
pub struct Fake {
    dir: TempDir,
}

impl Fake {
    /// An empty one.
    pub fn new() -> Self {
        let fake = Self { dir: TempDir::new().expect("make a folder") };
        for folder in ["bin", "usr", "compilers"] {
            fs::create_dir(fake.path(folder)).expect("make a folder");
        }
        fake
    }

    /// As the search for tools sees it.
    pub fn machine(&self, root: bool) -> Machine {
        Machine::with(vec![self.path("bin")], self.path("usr/rustc"), root)
    }

    /// A path in it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// A program on the search path that does this.
    pub fn program(&self, name: &str, does: &str) {
        self.link(&self.path("bin").join(name), does);
    }

    /// Rustup's two compilers on the search path, either of which may be missing.
    pub fn rustup(&self, current: Option<&str>, nightly: Option<&str>) {
        let of = |name: &str, version: Option<&str>| match version {
            Some(version) => self.compiler(name, version),
            None => "echo \"error: toolchain is not installed\" >&2; exit 1".to_string(),
        };
        let (current, nightly) = (of("stable", current), of("nightly", nightly));
        self.program("rustc", &format!("if [ \"$RUSTUP_TOOLCHAIN\" = nightly ]; then {nightly}\nelse {current}\nfi"));
    }

    /// The distribution's compiler.
    pub fn distribution(&self, version: &str) {
        self.link(&self.path("usr/rustc"), &self.compiler("distribution", version));
    }

    /// Package servers with a new compiler and `llvm-22`, and an index that is old: only a fresh one offers them.
    pub fn apt(&self) {
        for (age, version) in [("old", OLD), ("new", NEW)] {
            fs::write(self.path(age), self.compiler(age, version)).expect("write");
        }
        let (dir, program) = (self.dir.path().display(), fake_program());
        let program = program.display();
        self.program(
            "apt-get",
            &format!(
                "echo \"$@\" >> {dir}/apt.log\n\
                 age=old; [ ! -e {dir}/index ] || age=new\n\
                 case \"$*\" in\n\
                 update*) touch {dir}/index;;\n\
                 *rustc-web*) ln -sf {program} {dir}/usr/rustc; cp {dir}/$age {dir}/usr/rustc.does;;\n\
                 *llvm-22*) for tool in llc-22 llvm-strip-22; do ln -sf {program} {dir}/bin/$tool\n\
                 echo 'echo Debian LLVM version 22.1.8' > {dir}/bin/$tool.does; done;;\n\
                 esac"
            ),
        );
    }

    /// What `apt-get` was asked, line by line.
    pub fn apt_log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("apt.log")).unwrap_or_default();
        text.lines().map(str::to_string).collect()
    }

    /// What a compiler does that has all libraries and sources.
    fn compiler(&self, name: &str, version: &str) -> String {
        let home = self.path("compilers").join(name);
        for target in [WASM_TARGET, ebpf::TARGET] {
            let libraries = home.join("lib/rustlib").join(target).join("lib");
            fs::create_dir_all(&libraries).expect("make a folder");
            fs::write(libraries.join("libcore-1.rlib"), "").expect("write");
        }
        let sources = home.join("lib/rustlib/src/rust/library");
        fs::create_dir_all(&sources).expect("make a folder");
        fs::write(sources.join("Cargo.toml"), "").expect("write");
        let linker = home.join("lib/rustlib/host/bin");
        fs::create_dir_all(&linker).expect("make a folder");
        fs::write(linker.join("rust-lld"), "").expect("write");
        let home = home.display();
        format!(
            "case \"$*\" in\n\
             -vV) echo 'rustc {version} (fake)'; echo 'release: {version}'; echo 'LLVM version: 22.1.8';;\n\
             '--print sysroot') echo {home};;\n\
             '--print target-libdir'*) echo {home}/lib/rustlib/$4/lib;;\n\
             '--target '*' --crate-type=lib --emit=dep-info=- -') ;;\n\
             *) echo \"what is $*?\" >&2; exit 1;;\n\
             esac"
        )
    }

    fn link(&self, at: &Path, does: &str) {
        if !at.exists() {
            symlink(fake_program(), at).expect("link");
        }
        fs::write(at.with_file_name(format!("{}.does", at.file_name().expect("a name").display())), does)
            .expect("write");
    }
}

fn fake_program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fakes/program.sh")
}
