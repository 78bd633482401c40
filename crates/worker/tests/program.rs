//! The program as people and scripts run it.

use serde_json::Value;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn worker(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_catchment-worker")).args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = worker(&[arguments, &["--output", "json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn init_and_evaluate() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (a, b) = (path("a.safetensors"), path("b.safetensors"));
    let made = json(&["init", "--model", "cnn", "--seed", "7", "--out", &a]);
    assert_eq!((made["model"].as_str(), made["parameters"].as_u64()), (Some("cnn"), Some(3818)));
    json(&["init", "--model", "cnn", "--seed", "7", "--out", &b]);
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    let measured = json(&["evaluate", "--model-file", &a]);
    assert_eq!(measured["samples"], 359);
    assert!(measured["accuracy"].as_f64().unwrap() < 0.4);
    let text = worker(&["evaluate", "--model-file", &a]);
    assert!(String::from_utf8(text.stdout).unwrap().starts_with("cnn on 359 held-out digits: accuracy 0."));
    let missing = worker(&["evaluate", "--model-file", &path("none")]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8(missing.stderr).unwrap().contains("read "));
}

#[test]
fn baselines() {
    let few = ["--rounds", "2", "--local-epochs", "1"];
    let pooled = json(&[&["baseline", "pooled"], &few[..]].concat());
    assert_eq!((pooled["train_samples"].as_u64(), pooled["epochs"].as_u64()), (Some(1438), Some(2)));
    let local = json(&[&["baseline", "local", "--clients", "10"], &few[..]].concat());
    assert_eq!(local["clients"].as_array().unwrap().len(), 10);
    assert!(local["best_accuracy"].as_f64() >= local["mean_accuracy"].as_f64());
    let one = json(&[&["baseline", "local", "--clients", "10", "--index", "3"], &few[..]].concat());
    assert_eq!(one, local["clients"][3]);
}

#[test]
fn wrong_arguments_and_absent_servers_have_their_status() {
    let status = |arguments: &[&str]| worker(arguments).status.code();
    assert_eq!(status(&["train"]), Some(2));
    assert_eq!(status(&["baseline", "local", "--clients", "0"]), Some(1));
    assert_eq!(status(&["train", "--job", "a", "--index", "10", "--clients", "10"]), Some(1));
    assert_eq!(status(&["evaluate", "--model-file", "x", "--device", "cuda"]), Some(1));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let absent = ["train", "--url", &url, "--job", "a", "--index", "0", "--clients", "2", "--patience", "0"];
    assert_eq!(status(&absent), Some(3));
}

#[test]
fn a_signal_ends_it_at_once() {
    // Takes connections and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    for (name, status) in [("TERM", 143), ("INT", 130)] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_catchment-worker"))
            .args(["train", "--url", &url, "--job", "a", "--index", "0", "--clients", "2"])
            .spawn()
            .unwrap();
        let _connection = listener.accept().unwrap();
        let begun = Instant::now();
        assert!(Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(status));
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
