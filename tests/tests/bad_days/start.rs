//! A server that cannot start says why, and ends.

use catchment_tests::{Bus, Nats, Server, free_port, on_both_buses, run_to_end, shared_memory};
use std::time::Duration;
use tempfile::TempDir;

/// Runs `catchment up` with these settings; it must fail within seconds. Gives what it said.
fn refusal(settings: &[&str]) -> String {
    let dir = TempDir::new().expect("make a folder");
    let slabs = shared_memory();
    let text = |path: &std::path::Path| path.display().to_string();
    let (data, slabs) = (text(&dir.path().join("data")), text(slabs.path()));
    let mut arguments = vec!["up"];
    for (flag, value) in [("--listen", "127.0.0.1:0"), ("--data", data.as_str()), ("--slabs", slabs.as_str())] {
        if !settings.contains(&flag) {
            arguments.extend([flag, value]);
        }
    }
    arguments.extend(settings);
    let output = run_to_end(&arguments, Duration::from_secs(20));
    assert!(!output.status.success(), "it must not start");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("is up"));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_unreachable_nats_is_named() {
    let url = format!("nats://127.0.0.1:{}", free_port());
    let said = refusal(&["--nats", &url, "--nats-wait", "0s"]);
    assert!(said.contains(&url) && said.contains("nats-server"), "{said}");
    assert!(!said.contains("waiting"), "{said}");
}

#[test]
fn an_unreachable_nats_is_waited_for_in_vain() {
    let url = format!("nats://127.0.0.1:{}", free_port());
    let said = refusal(&["--nats", &url, "--nats-wait", "1s"]);
    assert!(said.contains("waiting for NATS") && said.contains("nats-server"), "{said}");
}

#[test]
fn a_nats_address_that_is_none_is_named() {
    let said = refusal(&["--nats", "http://localhost"]);
    assert!(said.contains("nats://") && said.contains("http"), "{said}");
}

#[test]
fn a_wrong_setting_is_named() {
    for (settings, says) in [
        (&["--body-grace", "soon"][..], "--body-grace"),
        (&["--slab-mib", "0"], "--slab-mib"),
        (&["--data", "/proc/no/such/folder"], "/proc/no/such/folder"),
        (&["--functions", "/no/such/folder"], "/no/such/folder"),
        (&["--slabs", "/proc/no/such/folder"], "/proc/no/such/folder"),
        (&["--frobnicate", "1"], "--frobnicate"),
        (&["--runners", "999"], "--runners"),
        (&["--buffer-mib", "0"], "--buffer-mib"),
        // No port without an address: 0.0.0.0 is to be said.
        (&["--listen", ":7070"], "0.0.0.0:7070"),
        (&["--listen", "7070"], "127.0.0.1:7070"),
        (&["--listen", "localhost"], "localhost:7070"),
        (&["--listen", "http://127.0.0.1:7070"], "no scheme"),
        (&["--listen", "nosuch.invalid:0"], "nosuch.invalid"),
        (&["--advertise", ":7070"], "http://10.0.0.7:7070"),
        (&["--advertise", "https://10.0.0.7:7070"], "http"),
        (&["--runner-user", "nobody"], "--runner-user"),
        // It needs runners.
        (&["--runners", "0", "--ebpf", "on"], "--ebpf"),
    ] {
        let said = refusal(settings);
        assert!(said.contains(says), "{settings:?}: {said}");
    }
}

on_both_buses! {
    async fn a_host_s_name_is_listened_on(bus: Bus) {
        let server = Server::start_with(bus, &[("--listen", "localhost:0"), ("--advertise", "localhost:7070")]).await;
        assert!(server.address().starts_with("127.0.0.1:"), "{}", server.address());
        crate::lives_on(&server.api()).await;
        let address = server.address().to_owned();
        let listed = tokio::task::spawn_blocking(move || {
            run_to_end(&["job", "list", "--url", &address.replace("127.0.0.1", "localhost")], Duration::from_secs(20))
        });
        assert!(listed.await.expect("it runs").status.success(), "an address without a scheme is one");
    }

    /// Two servers on one data directory would both believe that the slabs are theirs.
    async fn a_directory_in_use_is_named(bus: Bus) {
        let server = Server::start(bus).await;
        let (data, slabs) = (server.data().display().to_string(), server.slabs().display().to_string());
        let other = (bus == Bus::Nats).then(Nats::start);
        let nats = other.as_ref().map(|nats| ["--nats".to_owned(), nats.url()]);
        let nats: Vec<&str> = nats.iter().flatten().map(String::as_str).collect();
        let in_use = |settings: &[&str]| {
            let said = refusal(&[settings, &nats].concat());
            assert!(said.contains("in use"), "{settings:?}: {said}");
        };
        in_use(&["--slabs", &slabs]);
        if bus == Bus::Embedded {
            in_use(&["--data", &data]);
        }
        crate::lives_on(&server.api()).await;
    }
}
