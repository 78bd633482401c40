//! What is left of the platform for those who may not do everything, and what outlives a process.

mod common;

use catchment_proxy::{Inbox, Link, LinkKind, Missing, Mode, Options, Route, RunnerId, drop_to_needed, open};
use common::{apart, become_nobody, descriptor, kernel, skipped};
use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// Sends one descriptor to a new runner and back.
fn works(link: &Arc<dyn Link>, runner: u32) {
    let mut inbox = Inbox::new(link.attach(RunnerId(runner)).expect("a runner's end")).expect("an inbox");
    link.place(Route(1), RunnerId(runner)).expect("a place");
    link.send(&descriptor(1, 5)).expect("room");
    let mut into = Vec::new();
    inbox.recv(&mut into).expect("a descriptor");
    assert_eq!(into, [descriptor(1, 5)]);
    link.detach(RunnerId(runner));
}

/// A copy of the programs that any user can read, as the folder of the build may not be.
fn readable_programs() -> TempDir {
    let programs = option_env!("CATCHMENT_EMBED_EBPF").map(PathBuf::from).unwrap_or_else(|| {
        let executable = std::env::current_exe().expect("a path");
        executable.ancestors().nth(3).expect("the build folder").join("ebpf")
    });
    let readable = folder();
    for name in ["route.o", "meter.o"] {
        fs::copy(programs.join(name), readable.path().join(name)).expect("a copy");
    }
    readable
}

/// A folder that every user can search.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("to be searched");
    folder
}

fn without(capability: CapabilitySet) {
    let sets = capabilities(None).expect("capabilities");
    let sets = CapabilitySets { effective: sets.effective - capability - CapabilitySet::SYS_ADMIN, ..sets };
    set_capabilities(None, sets).expect("fewer capabilities");
}

#[test]
fn an_ordinary_user_gets_the_socket_link_and_is_told_why() {
    if !geteuid().is_root() {
        return skipped("it takes root to become another user");
    }
    let Some(_) = kernel(&Options::default()) else { return };
    let programs = readable_programs();
    let options = Options { programs: Some(programs.path().to_path_buf()), ..Options::default() };
    apart(move || {
        become_nobody();
        let (link, report) = open(Mode::Auto, &options).expect("a link");
        assert_eq!(report.link, LinkKind::Socket);
        assert_eq!(report.routing.as_ref().map(|lack| lack.missing), Some(Missing::CapBpf));
        let text = report.to_string();
        assert!(text.contains("over Unix sockets") && text.contains("CAP_BPF is missing"), "{text}");
        works(&link, 1);
        let error = open(Mode::On, &options).err().expect("a refusal").to_string();
        assert!(error.contains("CAP_BPF") && error.contains("CAP_NET_ADMIN"), "{error}");
    });
}

#[test]
fn a_runner_needs_no_privilege() {
    let Some((link, _)) = kernel(&Options::default()) else { return };
    let end = link.attach(RunnerId(1)).expect("a runner's end");
    link.place(Route(1), RunnerId(1)).expect("a place");
    let runner = std::thread::spawn(|| {
        become_nobody();
        let mut inbox = Inbox::new(end).expect("an inbox");
        let mut into = Vec::new();
        while inbox.recv(&mut into).expect("descriptors") > 0 {}
        into
    });
    let sent: Vec<_> = (0..100).map(|n| descriptor(1, n)).collect();
    link.send_all(&sent).1.expect("room");
    link.detach(RunnerId(1));
    assert_eq!(runner.join().expect("the runner"), sent);
    assert_eq!(link.routes()[0].kernel, 100);
}

#[test]
fn each_missing_capability_is_named() {
    let Some((_, report)) = kernel(&Options::default()) else { return };
    assert_eq!((report.link, report.routing, report.metering), (LinkKind::Kernel, None, None));
    apart(|| {
        without(CapabilitySet::PERFMON);
        let (link, report) = open(Mode::On, &Options::default()).expect("a link");
        assert_eq!(report.metering.as_ref().map(|lack| lack.missing), Some(Missing::CapPerfmon));
        assert!(report.to_string().contains("CAP_PERFMON is missing"), "{report}");
        assert!(link.meter(1).is_ok() && link.cpu(1).is_none());
        works(&link, 1);
        without(CapabilitySet::NET_ADMIN);
        let (_, report) = open(Mode::Auto, &Options::default()).expect("a link");
        assert_eq!(report.routing.expect("a lack").missing, Missing::CapNetAdmin);
    });
}

#[test]
fn missing_or_broken_programs_are_a_lack_and_no_crash() {
    let folder = folder();
    let options = Options { programs: Some(folder.path().to_path_buf()), ..Options::default() };
    let missing = |options: &Options| open(Mode::Auto, options).expect("a link").1.routing.expect("a lack").missing;
    assert_eq!(missing(&options), Missing::Programs);
    if geteuid().is_root() {
        for garbage in [&b""[..], b"\x7fELF", &[7; 4096]] {
            fs::write(folder.path().join("route.o"), garbage).expect("a file");
            assert!(matches!(missing(&options), Missing::Kernel | Missing::Programs | Missing::CapBpf));
        }
    }
}

#[test]
fn after_loading_every_privilege_can_be_given_up() {
    let Some(_) = kernel(&Options::default()) else { return };
    apart(|| {
        let (link, report) = open(Mode::On, &Options::default()).expect("a link");
        drop_to_needed().expect("fewer capabilities");
        let left = capabilities(None).expect("capabilities");
        let unwanted = CapabilitySet::NET_ADMIN | CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN;
        assert!(!(left.effective | left.permitted | left.inheritable).intersects(unwanted), "{left:?}");
        for runner in 0..10 {
            works(&link, runner);
        }
        assert_eq!(link.remove(Route(1)).expect("its counts").kernel, 10);
        if report.metering.is_none() {
            link.meter(std::process::id()).expect("room");
            assert!(link.cpu(std::process::id()).is_some());
        }
        assert!(open(Mode::On, &Options::default()).is_err());
    });
}

/// Mounts a bpffs that only this thread sees, and that goes with it. Says whether that worked.
fn mount_bpffs(at: &Path) -> bool {
    let text = |text: &str| CString::new(text).expect("no zero");
    let (root, target, kind) = (text("/"), text(at.to_str().expect("UTF-8")), text("bpf"));
    // SAFETY: takes no pointers; this thread gets a mount table of its own.
    let own = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    let (private, null) = (libc::MS_REC | libc::MS_PRIVATE, std::ptr::null());
    // SAFETY: the strings end with zeros and outlive the calls.
    let mounted = own == 0
        && unsafe { libc::mount(null, root.as_ptr(), null, private, null.cast()) } == 0
        && unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, null.cast()) } == 0;
    if !mounted {
        skipped(&format!("mount a bpffs: {}", std::io::Error::last_os_error()));
    }
    mounted
}

/// Runs with a place for pins, in a thread of its own: options that name it, the bpffs it lies on, and a folder with
/// programs that anybody may read.
fn with_pins(body: impl FnOnce(Options, &Path, &Path) + Send + 'static) {
    let Some(_) = kernel(&Options::default()) else { return };
    let (home, programs) = (folder(), readable_programs());
    let (at, programs) = (home.path().to_path_buf(), programs.path().to_path_buf());
    apart(move || {
        if mount_bpffs(&at) {
            let pin = Some(at.join("catchment/node"));
            body(Options { pin, metering: false, ..Options::default() }, &at, &programs);
        }
    });
}

fn versions(options: &Options) -> Vec<String> {
    let entries = fs::read_dir(options.pin.as_ref().expect("a directory")).expect("a list");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

#[test]
fn pinned_routing_outlives_its_process_and_is_replaced_by_another_version() {
    with_pins(|options, _, _| {
        let (link, _) = open(Mode::On, &options).expect("a link");
        works(&link, 1);
        works(&link, 2);
        let first = versions(&options);
        assert_eq!(first.len(), 1);

        // A second process at the same time has routing of its own.
        let (second, report) = open(Mode::On, &options).expect("a link");
        assert_eq!(report.link, LinkKind::Kernel);
        works(&second, 1);
        assert_eq!(second.routes()[0].kernel, 1);
        drop(second);

        // The next one goes on with the counts, and its runners may have the same numbers.
        drop(link);
        let (link, _) = open(Mode::On, &options).expect("a link");
        assert_eq!(versions(&options), first);
        let found = link.routes();
        assert_eq!((found.len(), found[0].kernel, found[0].runner), (1, 2, None));
        works(&link, 1);
        assert_eq!(link.routes()[0].kernel, 3);
        drop(link);

        // What another version, or an attempt that was killed, left behind goes.
        let home = options.pin.clone().expect("a directory");
        fs::rename(home.join(&first[0]), home.join("0123456789abcdef")).expect("another version");
        fs::create_dir(home.join("fedcba9876543210-new")).expect("an attempt");
        let (link, _) = open(Mode::On, &options).expect("a link");
        assert_eq!(versions(&options), first);
        assert_eq!(link.routes(), []);
        works(&link, 1);
        drop(link);

        // Pins that lack a map are replaced, too.
        fs::remove_file(home.join(&first[0]).join("COUNTS")).expect("a pin");
        works(&open(Mode::On, &options).expect("a link").0, 1);
        assert_eq!(fs::read_dir(home.join(&first[0])).expect("a list").count(), 4);
    });
}

#[test]
fn pins_from_which_the_program_was_taken_are_replaced() {
    with_pins(|options, _, programs| {
        drop(open(Mode::On, &options).expect("a link"));
        let home = options.pin.clone().expect("a directory");
        let version = home.join(&versions(&options)[0]);
        let object = fs::read(programs.join("route.o")).expect("a program");
        let bare = aya::Ebpf::load(&object).expect("maps without a program");
        for (name, map) in bare.maps() {
            fs::remove_file(version.join(name)).expect("a pin");
            map.pin(version.join(name)).expect("another");
        }
        let (link, report) = open(Mode::On, &options).expect("a link");
        assert_eq!(report.link, LinkKind::Kernel);
        works(&link, 1);
        drop(link);
        works(&open(Mode::On, &options).expect("a link").0, 1);
    });
}

#[test]
fn whoever_owns_pins_needs_no_capability() {
    with_pins(|options, at, programs| {
        drop(open(Mode::On, &options).expect("a link"));
        let home = options.pin.clone().expect("a directory");
        let version = home.join(&versions(&options)[0]);
        fs::set_permissions(at, fs::Permissions::from_mode(0o755)).expect("to be searched");
        for path in [home.clone(), version.clone()] {
            std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("another owner");
        }
        for entry in fs::read_dir(version).expect("a list") {
            std::os::unix::fs::chown(entry.expect("a pin").path(), Some(65534), Some(65534)).expect("another owner");
        }
        become_nobody();
        let options = Options { programs: Some(programs.to_path_buf()), ..options };
        let (link, report) = open(Mode::On, &options).expect("a link");
        assert_eq!(report.link, LinkKind::Kernel);
        works(&link, 1);
        assert_eq!(link.routes()[0].kernel, 1);
    });
}

#[test]
fn a_directory_that_cannot_hold_pins_is_named() {
    let Some(_) = kernel(&Options::default()) else { return };
    let options = Options { pin: Some(std::env::temp_dir()), ..Options::default() };
    let error = open(Mode::On, &options).err().expect("a refusal").to_string();
    assert!(error.contains("no bpffs"), "{error}");
}
