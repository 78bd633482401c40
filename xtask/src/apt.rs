//! Packages of the distribution, where it is Debian or one of its descendants.

use crate::machine::{Machine, output};
use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// The one line for people.
pub fn line(packages: &[&str]) -> String {
    format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "))
}

/// Installs packages, or upgrades them, when this process may. A new machine's package index is months old, and so is what
/// it offers: it is refreshed first, once.
pub fn install(machine: &Machine, packages: &[&str]) -> Result<()> {
    let line = line(packages);
    let Some(apt) = machine.on_path("apt-get") else {
        bail!("this machine has no apt-get; on Debian it would be\n  {line}");
    };
    if !machine.is_root() {
        bail!("installing packages needs root; this does it:\n  sudo sh -c '{line}'");
    }
    if packages.contains(&"rustc-web") && has_rustup(machine) {
        bail!(
            "Debian's packages `rustup` and `rustc-web` exclude each other; use rustup, or remove it and run\n  {line}"
        );
    }
    let complaint = match machine.refreshed.get() {
        true => None,
        // Without this it answers success for an index that it could not fetch.
        false => output(Command::new(&apt).args(["update", "-qq", "-o", "APT::Update::Error-Mode=any"])).err(),
    };
    match &complaint {
        None => machine.refreshed.set(true),
        Some(complaint) => eprintln!("note: the package index is not refreshed, and may be old: {complaint}"),
    }
    eprintln!("installing with apt-get: {} (some minutes, where the network is slow)", packages.join(" "));
    let status = Command::new(&apt)
        .args(["install", "-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("run {}", apt.display()))?;
    if !status.success() {
        let why = complaint.map(|text| format!(" (its index could not be refreshed: {text})")).unwrap_or_default();
        bail!(
            "apt-get failed, {status}{why}; where the package servers can be reached, this is what is needed:\n  {line}"
        );
    }
    Ok(())
}

fn has_rustup(machine: &Machine) -> bool {
    let Some(query) = machine.on_path("dpkg-query") else { return false };
    output(Command::new(query).args(["-W", "-f", "${db:Status-Status}", "rustup"]))
        .is_ok_and(|text| text == "installed")
}
