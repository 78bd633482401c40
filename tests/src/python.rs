//! A client written in another language, with the format's own package: what it writes and reads is not ours.

use crate::programs::{root, target_dir};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

/// A Python with the packages of `tests/python/requirements.txt`.
pub struct Python {
    program: PathBuf,
}

impl Python {
    /// `CATCHMENT_PYTHON`, else a virtual environment among the build's tools, made or completed when it lacks something.
    ///
    /// # Panics
    /// When it cannot be made, with what pip said.
    pub fn find() -> Self {
        if let Some(program) = std::env::var_os("CATCHMENT_PYTHON") {
            return Self { program: program.into() };
        }
        let tools = target_dir().join("tools");
        fs::create_dir_all(&tools).expect("make the folder for tools");
        // One at a time makes it; `xtask` takes the same lock.
        let lock = File::create(tools.join("lock")).expect("make a lock");
        lock.lock().expect("lock");
        let (venv, requirements) = (tools.join("venv"), requirements());
        let program = venv.join("bin/python");
        let ready = Command::new(&program).arg("-I").arg(script("installed.py")).arg(&requirements).output();
        if !ready.is_ok_and(|output| output.status.success()) {
            run(Command::new("python3").arg("-m").arg("venv").arg(&venv));
            run(Command::new(&program).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&requirements));
        }
        Self { program }
    }

    /// Runs `tests/python/outside.py` and gives what it printed.
    ///
    /// # Panics
    /// When it fails, with what it said.
    pub fn outside(&self, arguments: &[&str]) -> String {
        self.script("outside.py", arguments)
    }

    /// Runs a script of `tests/python` and gives what it printed.
    ///
    /// # Panics
    /// When it fails, with what it said.
    pub fn script(&self, name: &str, arguments: &[&str]) -> String {
        run(Command::new(&self.program).arg(script(name)).args(arguments))
    }
}

fn script(name: &str) -> PathBuf {
    root().join("tests/python").join(name)
}

fn requirements() -> PathBuf {
    script("requirements.txt")
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
