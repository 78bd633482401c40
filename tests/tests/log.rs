//! A damaged log, repaired by the commands of docs/cluster.md, as they stand there: whoever follows them at three in the
//! morning must get there.

use catchment_tests::{
    Bus, Job, Nats, Reference, Sent, Server, Tensor, file, on_both_buses, root, run, run_to_end, until,
};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

const ELEMENTS: usize = 2000;
/// Longest time of one command.
const PATIENCE: Duration = Duration::from_secs(60);
/// The sequence that the page takes for an example.
const EXAMPLE: &str = "1042";

fn body(round: u64, client: u64) -> Vec<u8> {
    let value = |i: usize| ((round * 7919 + client * 104_729 + i as u64 * 31) % 9973) as f32 / 9973.0 - 0.5;
    file(&[Tensor::f32("w", &[ELEMENTS], &(0..ELEMENTS).map(value).collect::<Vec<_>>())])
}

fn sent() -> Sent {
    Sent::new(body, |_, client| 1.0 + client as f64, Reference::Mean)
}

/// The commands of the fenced blocks under a heading of the page, block by block, without comments.
fn documented(heading: &str) -> Vec<Vec<String>> {
    let page = std::fs::read_to_string(root().join("docs/cluster.md")).expect("read docs/cluster.md");
    let (_, after) = page.split_once(&format!("{heading}\n")).expect("the heading is there");
    let section: Vec<&str> =
        after.lines().take_while(|line| !line.starts_with("## ") && !line.starts_with("### ")).collect();
    let (mut blocks, mut inside) = (Vec::new(), false);
    for line in section {
        if line.starts_with("```") {
            inside = !inside;
            if inside {
                blocks.push(Vec::new());
            }
        } else if inside {
            let command = line.split(" #").next().unwrap_or_default().trim().to_owned();
            blocks.last_mut().expect("a block has begun").push(command);
        }
    }
    blocks
}

/// What a command said and did.
struct Said {
    code: Option<i32>,
    out: Value,
    err: String,
}

/// A folder in which an operator works, and what stands for the page's examples.
struct Operator {
    folder: TempDir,
    stands_for: Vec<(String, String)>,
}

impl Operator {
    fn new(stands_for: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("catchment-tests-").tempdir().expect("make a folder");
        let stands_for = stands_for.iter().map(|(is, becomes)| (is.to_string(), becomes.to_string())).collect();
        Self { folder, stands_for }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Does what a line of the page says.
    fn follows(&self, line: &str) -> Said {
        let line = self.stands_for.iter().fold(line.to_owned(), |line, (is, becomes)| line.replace(is, becomes));
        let words: Vec<String> = line
            .split_whitespace()
            .map(|word| if word.contains(".catchlog") { self.path(word) } else { word.to_owned() })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (program, arguments) = words.split_first().expect("a command");
        if *program != "catchment" {
            let status = std::process::Command::new(program).args(arguments).status().expect("run a command");
            assert!(status.success(), "`{line}`: {status}");
            return Said { code: Some(0), out: Value::Null, err: String::new() };
        }
        let output = run_to_end(arguments, PATIENCE);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        let out = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        println!("$ {line}\n{out}\n{err}");
        Said { code: output.status.code(), out, err }
    }

    fn does(&self, line: &str) -> Value {
        let said = self.follows(line);
        assert_eq!(said.code, Some(0), "`{line}`: {}", said.err);
        said.out
    }

    /// The first block of the page: what is wrong, taken away, made anew.
    fn repairs(&mut self, log: &str) -> u64 {
        self.stands_for.push(("$LOG".to_owned(), log.to_owned()));
        let commands = documented("## When the log is damaged").remove(0);
        let [choose, verify, export, verify_file, restore, verify_again] = &commands[..] else {
            panic!("the page says something else: {commands:?}");
        };
        assert!(choose.starts_with("LOG="), "{choose}");
        let said = self.follows(verify);
        assert_eq!((said.code, &said.out["sound"]), (Some(1), &json!(false)), "{}", said.err);
        let bad = said.out["first_bad"]["sequence"].as_u64().expect("it names a record");
        assert!(said.err.contains(&format!("record {bad}")), "{}", said.err);
        let advice = said.out["advice"].as_str().expect("it says what to do");
        assert!(advice.contains(&format!("--skip {bad} --replace")), "{advice}");
        self.does(export);
        let said = self.follows(verify_file);
        assert_eq!((said.code, &said.out["first_bad"]["sequence"]), (Some(1), &json!(bad)), "{}", said.err);
        self.stands_for.push((EXAMPLE.to_owned(), bad.to_string()));
        let restored = self.does(restore);
        assert_eq!(restored["left_out"][0]["sequence"], json!(bad), "{restored}");
        assert_eq!(restored["jobs_lost"], json!([]), "{restored}");
        assert!(Path::new(restored["replaced"].as_str().expect("a file")).is_file(), "{restored}");
        assert_eq!(self.does(verify_again)["sound"], json!(true));
        bad
    }
}

/// The log of a server, as options.
fn log_of(server: &mut Server, bus: Bus) -> String {
    match bus {
        Bus::Embedded => format!("--data {}", server.data().display()),
        Bus::Nats => format!("--nats {}", server.nats().url()),
    }
}

/// Updates of a round.
const GOAL: u64 = 3;

/// A job with a model of its first round, and the first update of its second.
async fn begun(server: &Server, sent: &Sent) -> Job {
    let job = server.api().begin("digits", json!({"goal": GOAL, "rounds": 3}), &body(0, 0)).await;
    for client in 0..GOAL {
        sent.accepted(&job, 1, client).await;
    }
    job.published(1).await;
    job.open_round(2).await;
    sent.accepted(&job, 2, 7).await;
    job
}

/// The job is there, takes these updates of the second round and all of the third, and comes to its end; its models are
/// those of its updates, each of which counts once. Gives how many were lost.
async fn goes_on(server: &Server, job: &Job, sent: &Sent, second: &[u64]) -> u64 {
    let job = job.through(&server.api());
    job.open_round(2).await;
    for client in second {
        sent.accepted(&job, 2, *client).await;
    }
    job.open_round(3).await;
    for client in 0..GOAL {
        sent.accepted(&job, 3, client).await;
    }
    job.in_state("completed").await;
    sent.check(&job, &[server.api()]).await
}

/// Flips a bit of each byte at which this text begins in the log's file.
fn flip(data: &Path, text: &str) {
    let path = data.join("log.redb");
    let mut bytes = std::fs::read(&path).expect("read the log's file");
    let places: Vec<usize> =
        bytes.windows(text.len()).enumerate().filter(|(_, at)| *at == text.as_bytes()).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "{text} is in the file");
    places.iter().for_each(|at| bytes[*at] ^= 0x80);
    std::fs::write(path, bytes).expect("write the log's file");
}

async fn publish(nats: &Nats, message: &'static [u8]) {
    let client = async_nats::connect(nats.url()).await.expect("connect to NATS");
    let stream = async_nats::jetstream::new(client);
    let acknowledged = stream.publish("catchment.v1.log", message.into()).await.expect("publish").await;
    acknowledged.expect("the stream takes it");
}

on_both_buses! {
    /// A bit of the newest record flips on the disk; or somebody publishes on the log's subject.
    async fn a_damaged_log_is_repaired_as_the_page_says(bus: Bus) {
        let mut server = Server::start(bus).await;
        let sent = sent();
        let job = begun(&server, &sent).await;
        if bus == Bus::Embedded {
            // An update that nobody will know of, though its sum is in the node's memory.
            let unlucky = job.accepted(2, "unlucky", "weight=1000", &body(2, 9)).await;
            server.api().receipt_in(&unlucky, "folded").await;
        }
        server.kill9();
        let log = log_of(&mut server, bus);
        match bus {
            Bus::Embedded => flip(server.data(), "unlucky"),
            Bus::Nats => publish(server.nats(), b"CTL2 and no record after it").await,
        }
        server.fails_to_start(if bus == Bus::Nats { "record " } else { "corrupt" }).await;
        Operator::new(&[]).repairs(&log);
        server.start_again().await;
        // What was in memory counts for nothing: the client is asked again.
        assert_eq!(goes_on(&server, &job, &sent, &[7, 8, 9]).await, 1);
    }
}

/// Records after which a process takes a snapshot, and a few more.
const SNAPSHOT_AFTER: usize = 20_500;

/// Fills a log with copies of its last record, which change nothing.
async fn fill(nats: &Nats) {
    let context = async_nats::jetstream::new(async_nats::connect(nats.url()).await.expect("connect to NATS"));
    let log = context.get_stream("CATCHMENT_LOG").await.expect("the log");
    let copied = log.get_last_raw_message_by_subject("catchment.v1.log").await.expect("a record").payload;
    for _ in 0..SNAPSHOT_AFTER / 500 {
        let mut acknowledged = Vec::new();
        for _ in 0..500 {
            acknowledged.push(context.publish("catchment.v1.log", copied.clone()).await.expect("publish"));
        }
        for one in acknowledged {
            one.await.expect("the stream takes it");
        }
    }
}

async fn first_sequence(url: &str) -> u64 {
    let context = async_nats::jetstream::new(async_nats::connect(url).await.expect("connect to NATS"));
    let stream = context.get_stream("CATCHMENT_LOG").await.expect("the log");
    stream.get_info().await.expect("what it says").state.first_sequence
}

/// A log whose beginning is in its snapshots: it begins where it did, with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_forgot_its_beginning_is_repaired() {
    run(async {
        let mut server = Server::start(Bus::Nats).await;
        let sent = sent();
        let job = begun(&server, &sent).await;
        fill(server.nats()).await;
        until("a snapshot is taken", async || server.log().contains("took a snapshot").then_some(())).await;
        fill(server.nats()).await;
        let url = server.nats().url();
        let forgot = async || (first_sequence(&url).await > 1).then_some(());
        until("the log has forgotten its beginning", forgot).await;
        server.kill9();
        let first = first_sequence(&url).await;
        publish(server.nats(), b"CTL2 and no record after it").await;
        let log = log_of(&mut server, Bus::Nats);
        Operator::new(&[]).repairs(&log);
        assert_eq!(first_sequence(&url).await, first);
        server.start_again().await;
        assert_eq!(goes_on(&server, &job, &sent, &[7, 8, 9]).await, 1);
    })
    .await;
}

/// The same of a log that is sealed with a cluster's key: a message is deleted from it, and what is made anew is sealed again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_log_is_repaired_with_its_key() {
    run(async {
        let operator = Operator::new(&[]);
        let key = operator.path("cluster.key");
        operator.does(&format!("catchment key new --out {key}"));
        let mut server = Server::not_started(Bus::Nats, &[("--cluster-key", &key)]);
        server.start_again().await;
        let sent = sent();
        let job = begun(&server, &sent).await;
        // What is deleted is that it was folded.
        let unlucky = job.accepted(2, "unlucky", "weight=1000", &body(2, 9)).await;
        server.api().receipt_in(&unlucky, "folded").await;
        server.kill9();
        let url = server.nats().url();
        let context = async_nats::jetstream::new(async_nats::connect(&url).await.expect("connect to NATS"));
        let stream = context.get_stream("CATCHMENT_LOG").await.expect("the log");
        let last = stream.get_info().await.expect("what it says").state.last_sequence;
        stream.delete_message(last).await.expect("delete a message");
        server.fails_to_start("is missing").await;
        let log = log_of(&mut server, Bus::Nats);
        let said = operator.follows(&format!("catchment log verify {log}"));
        assert!(said.code == Some(1) && said.err.contains("--cluster-key"), "{}", said.err);
        let bad = Operator::new(&[]).repairs(&format!("{log} --cluster-key {key}"));
        assert_eq!(bad, last);
        let mut other = Server::not_started(Bus::Nats, &[]);
        other.set("--nats", &url);
        other.fails_to_start("--cluster-key").await;
        server.start_again().await;
        assert_eq!(goes_on(&server, &job, &sent, &[7, 8, 9]).await, 1);
    })
    .await;
}

/// Garbage in the middle, and more of it: each record is named, one after the other. Then the same log cut before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_cut_before_its_first_wrong_record() {
    run(async {
        let mut server = Server::start(Bus::Nats).await;
        let sent = sent();
        let job = begun(&server, &sent).await;
        server.kill9();
        for garbage in [&b"CTL2x"[..], b"CTL2", b"CTL2y"] {
            publish(server.nats(), garbage).await;
        }
        let log = log_of(&mut server, Bus::Nats);
        let operator = Operator::new(&[]);
        let bad =
            operator.follows(&format!("catchment log verify {log}")).out["first_bad"]["sequence"].as_u64().unwrap();
        operator.does(&format!("catchment log export {log} --out a.catchlog"));
        let shown = operator.does(&format!("catchment log inspect {log} --records {bad}"));
        assert_eq!((&shown["hex"], &shown["bytes"]), (&json!("43544c3278"), &json!(5)), "{shown}");
        let inspected = operator.does("catchment log inspect --file a.catchlog");
        assert_eq!((&inspected["bad_records"], &inspected["jobs_at"]), (&json!(3), &json!(bad - 1)), "{inspected}");
        assert_eq!(inspected["jobs"][0]["name"], "digits");
        for (options, says) in [
            ("--replace".to_owned(), format!("--skip {bad}")),
            (format!("--skip {bad} --replace"), format!("--skip {}", bad + 1)),
            (format!("--until {}", bad - 1), "with --replace".to_owned()),
            (format!("--until {} --replace", bad + 100), "after the last record".to_owned()),
        ] {
            let said = operator.follows(&format!("catchment log restore {log} --from a.catchlog {options}"));
            assert!(said.code == Some(1) && said.err.contains(&says), "{options}: {}", said.err);
        }
        operator.does(&format!(
            "catchment log restore {log} --from a.catchlog --until {} --replace --keep-memory",
            bad - 1
        ));
        assert_eq!(operator.does(&format!("catchment log verify {log}"))["sound"], json!(true));
        server.start_again().await;
        assert_eq!(goes_on(&server, &job, &sent, &[8, 9]).await, 0, "only strangers' messages are gone");
    })
    .await;
}

on_both_buses! {
    /// Nobody repairs a log under the processes that use it.
    async fn a_log_at_work_is_left_alone(bus: Bus) {
        let mut server = Server::start(bus).await;
        let sent = sent();
        let job = begun(&server, &sent).await;
        let log = log_of(&mut server, bus);
        let operator = Operator::new(&[]);
        let exported = operator.follows(&format!("catchment log export {log} --out b.catchlog"));
        match bus {
            Bus::Embedded => {
                assert!(exported.code == Some(1) && exported.err.contains("in use by another process"), "{}", exported.err);
            }
            Bus::Nats => {
                assert_eq!(exported.code, Some(0), "reading disturbs nobody");
                let said = operator.follows(&format!("catchment log restore {log} --from b.catchlog --replace"));
                assert!(said.code == Some(1) && said.err.contains("are at work"), "{}", said.err);
            }
        }
        assert_eq!(goes_on(&server, &job, &sent, &[8, 9]).await, 0);
    }
}

/// A healthy log moves to another machine: models by hand, as the page says, and shared memory stays behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_moves_to_another_data_directory() {
    run(async {
        let mut server = Server::start(Bus::Embedded).await;
        let sent = sent();
        let job = begun(&server, &sent).await;
        server.stop().await;
        let folder = TempDir::new().expect("make a folder");
        let (old, new) = (server.data().display().to_string(), folder.path().join("new").display().to_string());
        let operator = Operator::new(&[("./catchment-data", &old), ("./new-data", &new)]);
        let commands = documented("### A log on another machine").remove(0);
        let said: Vec<Value> = commands.iter().map(|command| operator.does(command)).collect();
        let verified = said.last().expect("there are commands");
        assert_eq!((&verified["sound"], &verified["jobs"][0]["models"]), (&json!(true), &json!(2)), "{verified}");
        let moved = Server::start_with(Bus::Embedded, &[("--data", &new)]).await;
        let there = job.through(&moved.api());
        assert_eq!(there.model(1).await, {
            server.start_again().await;
            let model = job.through(&server.api()).model(1).await;
            server.kill9();
            model
        });
        // What lay in the memory of the first machine is lost, and its client is asked again.
        assert_eq!(goes_on(&moved, &job, &sent, &[7, 8, 9]).await, 1);
    })
    .await;
}

/// A cluster's log moves to another NATS server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_moves_to_another_server() {
    run(async {
        let mut server = Server::start(Bus::Nats).await;
        let sent = sent();
        let job = begun(&server, &sent).await;
        server.kill9();
        let other = Nats::start();
        let operator = Operator::new(&[]);
        operator.does(&format!("catchment log export {} --out c.catchlog", log_of(&mut server, Bus::Nats)));
        operator.does(&format!("catchment log restore --nats {} --from c.catchlog", other.url()));
        server.use_nats(other);
        server.start_again().await;
        assert_eq!(goes_on(&server, &job, &sent, &[8, 9]).await, 0);
    })
    .await;
}

/// What is no record is left out and counted. What claims to be one and is not ends the following, and the process says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_says_what_it_found_in_the_log() {
    run(async {
        let mut server = Server::start(Bus::Nats).await;
        let sent = sent();
        let job = begun(&server, &sent).await;
        publish(server.nats(), b"hello").await;
        let api = server.api();
        let counted = async || {
            let metrics = api.metrics().await;
            (metrics.sum("catchment_log_foreign", &[]) == 1.0).then_some(metrics)
        };
        assert_eq!(until("it is counted", counted).await.sum("catchment_log_followed", &[]), 1.0);
        assert_eq!(api.get("/readyz").await.expect(200).text(), "ready\n");
        goes_on(&server, &job, &sent, &[1, 2]).await;
        publish(server.nats(), b"CTL2 and no record after it").await;
        let refused = until("it says so", async || {
            let answer = api.get("/readyz").await;
            (answer.status == 503).then_some(answer)
        });
        let refused = refused.await.problem(503, "not_ready");
        let detail = refused["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("the event log cannot be followed: ") && detail.contains("record "), "{refused}");
        assert_eq!(api.metrics().await.sum("catchment_log_followed", &[]), 0.0);
    })
    .await;
}
