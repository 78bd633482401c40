//! The first fold after idling, through the program as its users run it.
//!
//! The clock starts when the last byte of an update has been given to the kernel. Of a job that has never folded
//! anything: no task, no instance, no thread is there for it. Two ends are seen from outside: the server's log says that
//! the update is taken into a batch (the fold begins), and the update's receipt says `folded` (the fold is finished and
//! written to the log; asked for a few thousand times a second, so late by a pause and a request). Without pauses, whoever
//! asks would take the processor that the fold is waiting for: on two cores that made `folded` up to 100 ms late. What
//! remains of that is shown, as the time that the server's threads could have run and did not.

use crate::http::Connection;
use crate::model::Model;
use crate::observe::{Series, processor_wait_seconds};
use crate::platform::Platform;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const LEVEL: &str = "warn,catchment_node::aggregate=debug";
const BEGINS: &str = "take into a batch";
/// Long enough for everything that follows an update to have ended.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two questions for a receipt.
const POLL: Duration = Duration::from_micros(250);
/// Times that are as long as the idling before them.
const LONG_ROUNDS: usize = 3;

#[derive(Default)]
struct Taken {
    answered: Series,
    begun: Series,
    folded: Series,
    waited: Series,
}

/// Measures and makes a Markdown table.
pub fn run(rounds: usize, idle_seconds: u64) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let (small, large) = (dir.path().join("small"), dir.path().join("large"));
    let header = r#"{"w":{"dtype":"F32","shape":[1024],"data_offsets":[0,4096]}}"#;
    std::fs::write(&small, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4096]].concat())?;
    Model::Resnet18.write(&large)?;
    let long = Duration::from_secs(idle_seconds);
    let mut table = String::from(
        "First fold after idling, from the last byte of the update, ms, medians (least–most)\n\n\
         | | answered 202 | fold begun | receipt says folded | waited for a processor, all threads |\n|---|---|---|---|---|\n",
    );
    let mut row = |what: &str, runners: &str, file: &Path, rounds: usize, idle: Duration| {
        let taken = measure(runners, file, rounds, idle)?;
        let ms = |series: &Series| series.map(|s| s * 1e3).show(2);
        let (answered, begun, folded) = (ms(&taken.answered), ms(&taken.begun), ms(&taken.folded));
        let waited = ms(&taken.waited);
        table.push_str(&format!("| {what} | {answered} | {begun} | {folded} | {waited} |\n"));
        anyhow::Ok(())
    };
    row("4 kB, first of its job, idle 2 s", "0", &small, rounds, PAUSE)?;
    row("4 kB, in a runner process", "1", &small, rounds, PAUSE)?;
    row("45 MB, idle 2 s", "0", &large, rounds, PAUSE)?;
    if idle_seconds > PAUSE.as_secs() {
        row(&format!("4 kB, idle {idle_seconds} s"), "0", &small, LONG_ROUNDS, long)?;
        row(&format!("45 MB, idle {idle_seconds} s"), "0", &large, LONG_ROUNDS, long)?;
    }
    Ok(table)
}

fn measure(runners: &str, file: &Path, rounds: usize, idle: Duration) -> Result<Taken> {
    let update = std::fs::read(file)?;
    let mut platform = Platform::start_with(1024, &["--runners", runners], LEVEL, Stdio::piped())?;
    let batches = batches(&mut platform)?;
    let (mut client, mut watcher) = (platform.connect()?, platform.connect()?);
    for round in 0..=rounds {
        let spec = json!({"name": format!("job-{round}"), "function": "fedavg", "goal": 2});
        client.json("POST", "/v1/jobs", spec.to_string().as_bytes())?;
        client.json("PUT", &format!("/v1/jobs/job-{round}/model"), &update)?;
    }
    let mut taken = Taken::default();
    for round in 0..=rounds {
        std::thread::sleep(if round == 0 { PAUSE } else { idle });
        let path = format!("/v1/jobs/job-{round}/rounds/1/updates/client");
        let before = processor_wait_seconds(platform.pid())?;
        let receipt = client.json("PUT", &path, &update)?;
        let answered = Instant::now();
        let sent = client.last_byte.context("it was sent")?;
        let receipt = receipt["receipt"].as_str().context("a receipt")?;
        let folded = until_folded(&mut watcher, receipt)?;
        let waited = processor_wait_seconds(platform.pid())? - before;
        let begun = batches.recv_timeout(Duration::from_secs(5)).context("the log names the batch")?;
        // With its accumulators, which wait for a second update.
        client.call("DELETE", &format!("/v1/jobs/job-{round}"), b"")?;
        // The first round is the process's own first, not the job's.
        if round > 0 {
            taken.answered.push(seconds(sent, answered));
            taken.begun.push(seconds(sent, begun));
            taken.folded.push(seconds(sent, folded));
            taken.waited.push(waited);
        }
    }
    Ok(taken)
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}

fn until_folded(watcher: &mut Connection, receipt: &str) -> Result<Instant> {
    let begun = Instant::now();
    loop {
        let view = watcher.json("GET", &format!("/v1/receipts/{receipt}"), b"")?;
        if view["state"] == "folded" {
            return Ok(Instant::now());
        }
        ensure!(begun.elapsed() < Duration::from_secs(10), "the update is not folded: {view}");
        std::thread::sleep(POLL);
    }
}

/// When each batch began, by the server's log.
fn batches(platform: &mut Platform) -> Result<Receiver<Instant>> {
    let log = platform.log().context("its log")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            let now = Instant::now();
            match line.contains(BEGINS) {
                true => drop(sender.send(now)),
                false => eprintln!("{line}"),
            }
        }
    });
    Ok(receiver)
}
