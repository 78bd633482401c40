//! The program as people and scripts run it, against a real server.

mod support;

use serde_json::{Value, json};
use std::cell::Cell;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Files, Ran, Server, program, values, with_input};

#[test]
fn a_job_from_creation_to_deletion() {
    let server = Server::start();
    let job = server.json(&["job", "create", "digits", "--function", "fedavg", "--rounds", "3", "--goal", "4"]);
    assert_eq!(job["state"], "waiting_for_model");
    assert_eq!((&job["spec"]["rounds"], &job["spec"]["goal"]), (&json!(3), &json!(4)));
    server.run(&["job", "create", "digits", "--function", "fedavg"]).fails(4, "409 exists");

    assert_eq!(server.json(&["job", "list"])["spec"]["name"], "digits");
    let table = server.text(&["job", "list"]);
    assert!(table.starts_with("NAME    STATE"), "{table}");
    assert!(table.contains("digits  waiting for model  0 of 3  0 of 4"), "{table}");
    let status = server.text(&["job", "status", "digits"]);
    assert!(status.contains("state      waiting for model\nreason     it has no initial model"), "{status}");

    let files = Files::new();
    let model = files.tensors("model", &[0.0; 4]);
    assert_eq!(server.json(&["model", "put", "digits", &model])["version"], 0);
    server.await_job("digits", |job| job["round"]["state"] == "open");
    let status = server.text(&["job", "status", "digits"]);
    assert!(status.contains("round      1 of 3, open\nupdates    0 of 4 received, 0 folded\n"), "{status}");
    assert!(status.contains("(in 9 m 5"), "the default deadline is 10 m: {status}");

    assert_eq!(server.json(&["job", "pause", "digits"])["state"], "paused");
    server.run(&["job", "pause", "digits"]).fails(4, "409 wrong_state");
    server.run(&["submit", "digits", "--client", "a", "--file", &model]).fails(4, "is paused and takes no updates");
    assert_eq!(server.text(&["job", "resume", "digits"]), "job `digits` is running\n");
    assert_eq!(server.json(&["job", "stop", "digits"])["state"], "stopped");
    assert_eq!(server.json(&["job", "delete", "digits"])["deleted"], true);
    server.run(&["job", "status", "digits"]).fails(4, "404 not_found");
    let none = server.run(&["job", "list", "--output", "table"]);
    assert_eq!((none.status, none.out.as_str(), none.err.as_str()), (0, "", "no jobs in namespace `default`\n"));
}

#[test]
fn a_spec_comes_from_files_flags_and_standard_input() {
    let (server, files) = (Server::start(), Files::new());
    let toml = "name = 'digits'\nfunction = 'fedavg'\ngoal = 3\n[client_config]\nlr = 0.5\n";
    let toml = files.write("digits.toml", toml);
    let job = server.json(&["job", "create", "--spec", &toml, "--goal", "7", "--client-config", "local_epochs=3"]);
    assert_eq!(job["spec"]["goal"], 7);
    assert_eq!(job["spec"]["client_config"], json!({"lr": 0.5, "local_epochs": 3}));

    let command = server.command(&["job", "create", "piped", "--namespace", "team-a", "--spec", "-"]);
    let piped = with_input(command, r#"{"function": "fedavg", "deadline": null}"#).ok();
    assert_eq!(piped.json_lines()[0]["spec"]["namespace"], "team-a");
    assert_eq!(server.json(&["job", "status", "piped", "--namespace", "team-a"])["spec"]["deadline"], Value::Null);
    server.run(&["job", "status", "piped"]).fails(4, "404 not_found");

    let set = ["--set", "limits.speed=1", "--set", "frobnicate=1"];
    let refused = server.run(&[&["job", "create", "bad", "--goal", "0", "--min-updates", "0"], &set[..]].concat());
    let refused = refused.fails(4, "the job spec is refused (422 invalid_spec):\n");
    for field in ["goal", "min_updates", "function", "limits.speed", "frobnicate"] {
        assert!(refused.err.contains(&format!("\n  {field}: ")), "{field}: {}", refused.err);
    }
    server.run(&["job", "create", "bad", "--function", "nope"]).fails(4, "there is no `nope`");

    let broken = files.write("broken.json", "{");
    server.run(&["job", "create", "--spec", &broken]).fails(64, "broken.json: not JSON");
    server.run(&["job", "create", "--spec", &files.path("none.json")]).fails(1, "none.json");
    let missing = ["job", "create", "lost", "--function", "fedavg", "--model", &files.path("none")];
    server.run(&missing).fails(1, "open the model");
    server.run(&["job", "status", "lost"]).fails(4, "404 not_found");
}

#[test]
fn updates_become_a_model() {
    let (server, files) = (Server::start(), Files::new());
    let initial = files.tensors("initial", &[0.0, 0.0, 0.0]);
    let create = ["job", "create", "mean", "--function", "fedavg", "--rounds", "2", "--goal", "2", "--model", &initial];
    assert_eq!(server.json(&create)["state"], "running");
    let mut watch = server.command(&["watch", "mean"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut events = BufReader::new(watch.stdout.take().unwrap()).lines().map(|line| event(&line.unwrap()));
    assert_eq!(events.next().unwrap()["event"], "round");

    let (a, b) = (files.tensors("a", &[1.0, 2.0, 3.0]), files.tensors("b", &[5.0, 6.0, 7.0]));
    let metrics = r#"{"accuracy": 0.5}"#;
    let first = ["submit", "mean", "--client", "a", "--file", &a, "--num-samples", "3", "--metrics", metrics];
    let receipt = server.json(&first);
    assert_eq!((&receipt["round"], &receipt["weight"], &receipt["known"]), (&json!(1), &json!(3.0), &json!(false)));
    let again = server.json(&[&first[..], &["--round", "1"]].concat());
    assert_eq!((&again["receipt"], &again["known"]), (&receipt["receipt"], &json!(true)));
    server.run(&["submit", "mean", "--client", "a", "--file", &b, "--round", "1"]).fails(4, "409 conflict");
    let settled = server.run(&["submit", "mean", "--client", "b", "--file", &b, "--weight", "1", "--wait"]).ok();
    let settled = settled.json_lines();
    assert_eq!(settled[0]["state"], "accepted");
    assert_eq!(settled.last().unwrap()["state"], "committed");
    assert_eq!(settled.last().unwrap()["model_version"], 1);

    server.run(&["submit", "mean", "--client", "c", "--file", &b, "--round", "1"]).fails(4, "410 round_closed");
    let misfit = files.tensors("misfit", &[1.0]);
    server.run(&["submit", "mean", "--client", "c", "--file", &misfit]).fails(4, "422 layout");
    server.run(&["submit", "mean", "--client", "c", "--file", &files.path("none")]).fails(1, "none");
    for (client, file) in [("a", &a), ("b", &b)] {
        server.run(&["submit", "mean", "--client", client, "--file", file]).ok();
    }
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    let events: Vec<Value> = events.collect();
    let models: Vec<&Value> = events.iter().filter(|event| event["event"] == "model").collect();
    assert_eq!(models.len(), 2, "{events:?}");
    assert_eq!((&models[0]["round"], &models[0]["version"]), (&json!(1), &json!(1)));
    assert_eq!((&models[0]["contributors"], &models[0]["metrics"]["accuracy"]), (&json!(2), &json!(0.5)));
    assert!(models.iter().all(|model| model["duration_ms"].is_u64()), "{models:?}");
    let end = events.last().unwrap();
    assert_eq!((&end["event"], &end["state"], &end["model_version"]), (&json!("end"), &json!("completed"), &json!(2)));

    let list = server.run(&["model", "list", "mean"]).ok().json_lines();
    let versions: Vec<u64> = list.iter().map(|model| model["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, [2, 1, 0]);
    let table = server.text(&["model", "list", "mean"]);
    assert!(table.contains("accuracy 0.5000"), "{table}");
    let out = files.path("out.safetensors");
    let got = server.json(&["model", "get", "mean", "--out", &out, "--version", "1"]);
    assert_eq!((&got["version"], &got["etag"]), (&json!(1), &list[1]["etag"]));
    assert_eq!(values(&out), [2.0, 3.0, 4.0]);
    assert!(server.text(&["model", "get", "mean", "-o", &out]).contains("version 2, "));
    assert_eq!(values(&out), [3.0, 4.0, 5.0]);
    server.run(&["model", "get", "mean", "--out", &out, "--version", "9"]).fails(4, "404 not_found");
    server.run(&["model", "put", "mean", &a]).fails(4, "409 wrong_state");
    assert!(!std::path::Path::new(&files.path("out.safetensors.part")).exists());
    server.run(&["submit", "mean", "--client", "d", "--file", &a]).fails(4, "is completed and takes no updates");
    let history = server.run(&["watch", "mean", "--all", "--output", "table"]).ok().out;
    assert!(history.starts_with("round 1: model 1 of 2 updates, accuracy 0.5000, in "), "{history}");
    assert!(history.ends_with("\njob `mean` is completed: 2 rounds, model 2\n"), "{history}");
}

fn event(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))
}

#[test]
fn ends_have_their_status() {
    let (server, files) = (Server::start(), Files::new());
    let model = files.tensors("model", &[0.0]);
    let create = |name: &'static str, more: &[&'static str]| {
        let line = ["job", "create", name, "--function", "fedavg", "--goal", "1", "--rounds", "1", "--model", &model];
        server.command(&[&line[..], more].concat())
    };
    let fail = ["--deadline", "300ms", "--on-shortfall", "fail", "--wait"];
    let failed = Ran::from(create("fails", &fail).output().unwrap());
    let failed = failed.fails(4, "job `fails` failed: round 1 had 0 updates at its deadline and needs 1");
    assert_eq!(failed.json_lines().last().unwrap()["state"], "failed");
    server.run(&["watch", "fails"]).fails(4, "job `fails` failed");

    let skip = ["--deadline", "300ms", "--on-shortfall", "skip", "--wait", "--output", "table"];
    let skipped = Ran::from(create("skips", &skip).output().unwrap()).ok();
    assert!(skipped.out.contains("\n1 round ended without a model\n"), "{skipped:?}");

    let waiting = create("waits", &["--wait"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    server.await_created("waits");
    server.run(&["submit", "waits", "--client", "a", "--file", &model]).ok();
    let waited = Ran::from(waiting.wait_with_output().unwrap()).ok().json_lines();
    assert_eq!(waited[0]["spec"]["name"], "waits");
    assert_eq!(waited.last().unwrap()["state"], "completed");

    for (name, action, status) in [("stopped", "stop", 0), ("deleted", "delete", 4)] {
        let watching = create(name, &["--wait"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        server.await_created(name);
        server.run(&["job", action, name]).ok();
        let watched = Ran::from(watching.wait_with_output().unwrap());
        assert_eq!(watched.status, status, "{watched:?}");
        assert!(status == 0 || watched.err.contains("was deleted"), "{watched:?}");
    }

    server.run(&["job", "create", "open", "--function", "fedavg", "--goal", "2", "--model", &model]).ok();
    let submit = ["submit", "open", "--client", "a", "--file", &model, "--wait"];
    let mut submitting = server.command(&submit);
    let submitting = submitting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    server.await_job("open", |job| job["round"]["received"] == 1);
    server.run(&["job", "stop", "open"]).ok();
    Ran::from(submitting.wait_with_output().unwrap()).fails(4, "the update was discarded: the job was stopped");
}

#[test]
fn functions_are_listed_and_described() {
    let server = Server::start();
    let listed = server.run(&["function", "list"]).ok().json_lines();
    assert!(listed.iter().any(|function| function["name"] == "fedavg"), "{listed:?}");
    assert!(server.text(&["function", "list"]).starts_with("NAME"));
    let fedavg = server.json(&["function", "inspect", "fedavg"]);
    assert_eq!(fedavg["class"], "additive");
    let text = server.text(&["function", "inspect", "fedavg"]);
    assert!(text.contains(&format!("digest      {}\n", fedavg["digest"].as_str().unwrap())), "{text}");
    server.run(&["function", "inspect", "nope"]).fails(4, "404 not_found");
    let pinned = format!("fedavg@{}", fedavg["digest"].as_str().unwrap());
    server.run(&["job", "create", "pinned", "--function", &pinned]).ok();
}

#[test]
fn an_absent_server_and_wrong_arguments() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let files = Files::new();
    let file = files.tensors("a", &[1.0]);
    let run = |arguments: &[&str]| Ran::from(program().args(arguments).env("CATCHMENT_URL", &url).output().unwrap());
    let commands: [&[&str]; 9] = [
        &["job", "create", "a", "--function", "fedavg"],
        &["job", "list"],
        &["job", "status", "a"],
        &["model", "get", "a", "--out", &files.path("out")],
        &["model", "put", "a", &file],
        &["submit", "a", "--client", "c", "--file", &file],
        &["submit", "a", "--client", "c", "--file", &file, "--round", "1"],
        &["watch", "a"],
        &["function", "list"],
    ];
    for command in commands {
        run(&[command, &["--patience", "0"]].concat()).fails(3, "is `catchment up` running there?");
    }
    let begun = Instant::now();
    run(&["job", "list"]).fails(3, &url);
    assert!(begun.elapsed() < Duration::from_secs(10), "nobody waits longer to learn that there is no server");

    for wrong in [
        &["job"][..],
        &["job", "status", "Not-A-Label"],
        &["job", "create", "a", "--deadline", "soon"],
        &["submit", "a", "--client", "c"],
        &["submit", "a", "--client", "c", "--file", &file, "--weight", "-1"],
        &["submit", "a", "--client", "c", "--file", &file, "--metrics", "[]"],
        &["watch", "a", "--output", "xml"],
    ] {
        assert_eq!(run(wrong).status, 2, "{wrong:?}");
    }
    run(&["job", "list", "--url", "https://localhost"]).fails(64, "plain http");
    run(&["job", "list", "--url", "nowhere"]).fails(64, "server address `nowhere`");
    let help = run(&["--help"]).ok().out;
    assert!(help.contains("Exit status:") && help.contains("catchment watch digits"), "{help}");
}

#[test]
fn a_watch_outlives_its_server_and_ends_by_a_signal() {
    let (mut server, files) = (Server::start(), Files::new());
    let model = files.tensors("model", &[0.0]);
    server.run(&["job", "create", "a", "--function", "fedavg", "--goal", "1", "--rounds", "2", "--model", &model]).ok();
    let watch = || server.command(&["watch", "a"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut signalled = watch();
    let mut first = [0];
    signalled.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let pid = rustix::process::Pid::from_child(&signalled);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(signalled.wait().unwrap().code(), Some(130));

    let mut unread = watch();
    drop(unread.stdout.take());
    let mut watching = watch();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    assert_eq!(event(&lines.next().unwrap().unwrap())["event"], "round");
    server.restart(Duration::from_millis(500));
    for client in ["b", "c"] {
        server.run(&["submit", "a", "--client", client, "--file", &model, "--wait"]).ok();
    }
    assert_eq!(watching.wait().unwrap().code(), Some(0));
    let events: Vec<Value> = lines.map(|line| event(&line.unwrap())).collect();
    let versions: Vec<&Value> = events.iter().filter_map(|event| event.get("version")).collect();
    assert_eq!(versions, [&json!(1), &json!(2)]);
    assert_eq!(unread.wait().unwrap().code(), Some(0), "a closed pipe is no error");
}

#[test]
fn long_lists_come_whole() {
    const JOBS: usize = 1001; // one more than a page
    let server = Server::start();
    let client = catchment_client::Client::new(&server.url).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let create = |i: usize| {
            let (client, spec) = (client.clone(), json!({"name": format!("job-{i:04}"), "function": "fedavg"}));
            tokio::spawn(async move { client.create_job(&spec).await.unwrap() })
        };
        let creating: Vec<_> = (0..JOBS).map(create).collect();
        for job in creating {
            job.await.unwrap();
        }
    });
    let jobs = server.run(&["job", "list"]).ok().json_lines();
    assert_eq!(jobs.len(), JOBS);
    assert!(jobs.is_sorted_by_key(|job| job["spec"]["name"].as_str().unwrap().to_owned()));
    assert_eq!(server.text(&["job", "list"]).lines().count(), JOBS + 1);
}

#[test]
fn a_terminal_gets_tables_and_a_live_view() {
    let (server, files) = (Server::start(), Files::new());
    let model = files.tensors("model", &[0.0]);
    server.run(&["job", "create", "a", "--function", "fedavg", "--goal", "2", "--rounds", "1", "--model", &model]).ok();
    server.run(&["submit", "a", "--client", "a", "--file", &model, "--metrics", r#"{"loss": 0.25}"#]).ok();

    let (screen, status) = on_terminal(&server, &["job", "list"], |_| ());
    assert_eq!(status, 0);
    assert!(screen.contains("NAME") && screen.contains("1 of 1"), "{screen}");

    let sent = Cell::new(false);
    let (screen, status) = on_terminal(&server, &["watch", "a"], |shown| {
        if shown.contains("1/2 received, 1 folded") && !sent.replace(true) {
            server.run(&["submit", "a", "--client", "b", "--file", &model]).ok();
        }
    });
    assert_eq!(status, 0);
    assert!(screen.contains("a: running, round 1 open, from model 0, 9 m 5"), "{screen}");
    assert!(screen.contains("round 1: model 1 of 2 updates, loss 0.2500, in "), "{screen}");
    assert!(screen.trim_end().ends_with("job `a` is completed: 1 round, model 1"), "{screen}");
}

/// Runs a command on a terminal of its own until it ends; `look` sees what was shown so far. Gives that and the status.
fn on_terminal(server: &Server, arguments: &[&str], look: impl Fn(&str)) -> (String, i32) {
    let line = format!("stty cols 120 rows 40 && exec {} {}", env!("CARGO_BIN_EXE_catchment"), arguments.join(" "));
    // `script` (bsdutils, on every Debian) gives it the terminal, and this test what appears there.
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm");
    script.env("CATCHMENT_URL", &server.url).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = script.spawn().expect("the program `script` is there");
    let (mut screen, mut shown, mut bytes) = (child.stdout.take().unwrap(), String::new(), [0; 4096]);
    loop {
        match screen.read(&mut bytes).unwrap() {
            0 => return (shown, child.wait().unwrap().code().unwrap()),
            read => shown += &String::from_utf8_lossy(&bytes[..read]),
        }
        look(&shown);
    }
}
