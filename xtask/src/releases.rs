//! Programs of earlier releases, built from this repository's own history: what they store has to be read by this one, and
//! beside them it has to run.
//!
//! Each is built once and kept by its commit. Others' crates are those that this workspace is built of anyway: they are
//! compiled in the same way, into the same folder, so cargo finds them there. The release's own are built to compile fast,
//! because how fast they are does not matter.

use crate::workspace;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The commits, as everybody who names one writes them.
const COMMITS: [&str; 1] = ["90cd4692512e373a06281ab50aab981c3c473dfc"];

/// Builds each release that is not there yet, and says where they are.
pub fn run() -> Result<()> {
    for commit in COMMITS {
        println!("{}", build(workspace::root(), &workspace::target_dir().join("releases"), commit)?.display());
    }
    Ok(())
}

/// The program of a commit of `repository`, kept under `home`.
fn build(repository: &Path, home: &Path, commit: &str) -> Result<PathBuf> {
    let folder = home.join(commit);
    let program = folder.join("catchment");
    if program.is_file() {
        return Ok(program);
    }
    find(repository, commit)?;
    let (work, target) = (folder.join("workspace"), folder.join("target"));
    println!("building the release of {commit}; it is kept in {}", folder.display());
    // What an interrupted run left may be half of it.
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    }
    let source = work.join(commit);
    fs::create_dir_all(&source).with_context(|| format!("make {}", source.display()))?;
    unpack(repository, commit, &source)?;
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let ours = read(&workspace::root().join("Cargo.toml"))?;
    fs::write(work.join("Cargo.toml"), manifest(&read(&source.join("Cargo.toml"))?, &ours, commit))?;
    // Both would be workspaces, one in the other.
    fs::remove_file(source.join("Cargo.toml"))?;
    fs::rename(source.join("Cargo.lock"), work.join("Cargo.lock"))?;
    let (begun, before) = (Instant::now(), cpu_seconds_of_children());
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&work).args(["build", "--release", "--quiet", "--locked", "--bin", "catchment"]);
    cargo.env("CARGO_TARGET_DIR", &target).env("CARGO_BUILD_BUILD_DIR", workspace::target_dir());
    workspace::without_package(&mut cargo).env("CARGO_PROFILE_RELEASE_INCREMENTAL", "false");
    // It carries no functions: whoever starts it says which.
    for name in ["CATCHMENT_EMBED_FUNCTIONS", "CATCHMENT_EMBED_EBPF"] {
        cargo.env_remove(name);
    }
    let status = cargo.stdin(Stdio::null()).status().context("run cargo")?;
    if !status.success() {
        bail!("the release of {commit} does not build");
    }
    println!("built in {} s, {:.0} s of CPU", begun.elapsed().as_secs(), cpu_seconds_of_children() - before);
    // Renamed last, so that it is there whole or not at all.
    fs::rename(target.join("release/catchment"), &program).with_context(|| format!("write {}", program.display()))?;
    for folder in [&work, &target] {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(program)
}

/// The workspace's manifest of a release whose files lie in `folder` beside it, with our settings for others' crates.
///
/// Cargo tells packages of two workspaces apart by their paths within them. Without a folder of its own the release's crates
/// would take the place of ours in the build folder.
fn manifest(release: &str, ours: &str, folder: &str) -> String {
    let whole = release.split("\n[profile.").next().unwrap_or_default();
    let moved = whole.lines().map(|line| match line.split_once(" = [") {
        Some((key @ ("members" | "exclude"), list)) => {
            let list = list.replace(", \"", &format!(", \"{folder}/")).replacen('"', &format!("\"{folder}/"), 1);
            format!("{key} = [{list}\n")
        }
        _ => format!("{}\n", line.replace("path = \"", &format!("path = \"{folder}/"))),
    });
    let moved: String = moved.collect();
    let settings = ours.split_once("[profile.release]\n").map(|(_, settings)| settings).unwrap_or_default();
    let is_of_others = |line: &&str| !line.starts_with("catchment");
    let settings: String = settings.lines().filter(is_of_others).map(|line| format!("{line}\n")).collect();
    let own = moved.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
    let own: BTreeSet<&str> = own.filter(|name| name.starts_with("catchment-")).chain(["catchment"]).collect();
    let own: String = own.iter().map(|name| format!("[profile.release.package.{name}]\nopt-level = 0\n")).collect();
    format!("{moved}\n[profile.release]\n{settings}\n{own}")
}

/// Whether the history has this commit; otherwise how to get it.
fn find(repository: &Path, commit: &str) -> Result<()> {
    let git = |arguments: &[&str]| Command::new("git").current_dir(repository).args(arguments).output();
    let found = git(&["cat-file", "-e", &format!("{commit}^{{commit}}")]).context("run git")?;
    if found.status.success() {
        return Ok(());
    }
    let shallow = git(&["rev-parse", "--is-shallow-repository"]).context("run git")?;
    let why = match String::from_utf8_lossy(&shallow.stdout).trim() {
        "true" => "this is a shallow clone; get the rest of the history, and try again:\n  git fetch --unshallow",
        "false" => "the history has been rewritten or fetched only in part; clone the repository anew",
        _ => "this is no git repository; clone it instead of copying its files",
    };
    bail!("the tests need the program of commit {commit}, which is not in the history here: {why}")
}

/// Writes a commit's files into a folder.
fn unpack(repository: &Path, commit: &str, to: &Path) -> Result<()> {
    let mut git = Command::new("git");
    let mut archive = git.current_dir(repository).args(["archive", "--format=tar", commit]);
    archive = archive.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut archive = archive.spawn().context("run git archive")?;
    let files = archive.stdout.take().context("git archive says something")?;
    let unpacked = Command::new("tar").arg("-x").arg("-C").arg(to).stdin(files).status().context("run tar")?;
    if !archive.wait().context("wait for git archive")?.success() || !unpacked.success() {
        bail!("the files of commit {commit} cannot be unpacked into {}", to.display());
    }
    Ok(())
}

/// CPU time of this process's children that have ended, theirs included; 0 where the kernel does not say.
fn cpu_seconds_of_children() -> f64 {
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name, which may hold anything, ends with the last bracket.
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / TICKS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(folder: &Path, arguments: &[&str]) -> String {
        let who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "protocol.file.allow=always"];
        let output = Command::new("git").current_dir(folder).args(who).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A repository with two commits; the first one's name.
    fn repository(folder: &Path) -> String {
        git(folder, &["init", "--quiet"]);
        for text in ["one", "two"] {
            fs::write(folder.join("text"), text).unwrap();
            git(folder, &["add", "text"]);
            git(folder, &["commit", "--quiet", "--message", text]);
        }
        git(folder, &["rev-parse", "HEAD~1"])
    }

    #[test]
    fn this_history_has_them_all() {
        for commit in COMMITS {
            find(workspace::root(), commit).unwrap();
        }
    }

    #[test]
    fn a_commit_is_unpacked_as_it_was() {
        let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = repository(dir.path());
        unpack(dir.path(), &first, to.path()).unwrap();
        assert_eq!(fs::read_to_string(to.path().join("text")).unwrap(), "one");
        assert!(unpack(dir.path(), &"0".repeat(40), to.path()).is_err());
    }

    #[test]
    fn a_commit_that_is_not_there_fails_and_says_how_to_get_it() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, shallow, bare) = (dir.path().join("whole"), dir.path().join("shallow"), dir.path().join("bare"));
        for folder in [&whole, &bare] {
            fs::create_dir(folder).unwrap();
        }
        let first = repository(&whole);
        let url = format!("file://{}", whole.display());
        git(dir.path(), &["clone", "--quiet", "--depth", "1", &url, shallow.to_str().unwrap()]);
        let home = dir.path().join("home");
        let why = |repository: &Path, commit: &str| build(repository, &home, commit).unwrap_err().to_string();
        assert!(find(&whole, &first).is_ok());
        let said = why(&shallow, &first);
        assert!(said.contains("git fetch --unshallow") && said.contains(&first), "{said}");
        let said = why(&whole, &"0".repeat(40));
        assert!(!said.contains("unshallow") && said.contains("clone the repository"), "{said}");
        // Its parents are no repository either, or this one is taken for it: then the commit is not there all the same.
        let said = why(&bare, &"0".repeat(40));
        assert!(said.contains("clone"), "{said}");
        assert!(!home.exists(), "nothing is left of it");
        git(&shallow, &["fetch", "--quiet", "--unshallow"]);
        assert!(find(&shallow, &first).is_ok());
    }

    #[test]
    fn a_manifest_moves_into_a_folder_and_takes_our_settings() {
        let release = "[workspace]\nmembers = [\"a\", \"b/*\"]\nexclude = [\"c\"]\n\n[workspace.dependencies]\n\
            catchment-a = { path = \"b/a\" }\nserde = { version = \"1\", features = [\"derive\", \"rc\"] }\n\n[profile.release]\n\
            debug = 1\n\n[profile.release.package.\"*\"]\ndebug = false\n";
        let ours = "[workspace]\n\n[profile.release]\ndebug = 2\n\n[profile.release.package]\n\
            \"*\" = { debug = false }\nserde = { opt-level = 0 }\ncatchment-a = { opt-level = 3 }\n";
        let expected = "[workspace]\nmembers = [\"old/a\", \"old/b/*\"]\nexclude = [\"old/c\"]\n\n[workspace.dependencies]\n\
            catchment-a = { path = \"old/b/a\" }\nserde = { version = \"1\", features = [\"derive\", \"rc\"] }\n\n\
            [profile.release]\ndebug = 2\n\n[profile.release.package]\n\
            \"*\" = { debug = false }\nserde = { opt-level = 0 }\n\n\
            [profile.release.package.catchment]\nopt-level = 0\n\
            [profile.release.package.catchment-a]\nopt-level = 0\n";
        assert_eq!(manifest(release, ours, "old"), expected);
    }

    #[test]
    fn a_program_that_is_there_is_not_built_again() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("0");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("catchment"), "").unwrap();
        assert_eq!(build(home.path(), home.path(), "0").unwrap(), folder.join("catchment"));
    }
}
