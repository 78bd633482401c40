//! The account of everything that clients were told is accepted, and whether the cluster agrees with it at the end.

use crate::{Api, ExactMean, Job, assert_close, read, until, weighted_mean};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What models must be, given what they are made of.
#[derive(Debug, Clone, Copy)]
pub enum Reference {
    /// The weighted mean, closely.
    Mean,
    /// The bits of the exact sum.
    Exact(ExactMean),
    /// The median of each coordinate, of an odd number of updates.
    Median,
}

/// What clients sent and were given receipts for. An update follows from its round and its client.
pub struct Sent {
    body: fn(round: u64, client: u64) -> Vec<u8>,
    weight: fn(round: u64, client: u64) -> f64,
    reference: Reference,
    receipts: Mutex<BTreeMap<(u64, u64), BTreeSet<String>>>,
}

/// What became of a receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fate {
    state: String,
    model_version: Option<u64>,
}

impl Sent {
    /// An account in which nothing was sent.
    pub fn new(body: fn(u64, u64) -> Vec<u8>, weight: fn(u64, u64) -> f64, reference: Reference) -> Self {
        Self { body, weight, reference, receipts: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u64, u64), BTreeSet<String>>> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of an update.
    pub fn body(&self, round: u64, client: u64) -> Vec<u8> {
        (self.body)(round, client)
    }

    /// The address of an update, its weight and its job said.
    pub fn path(&self, job: &Job, round: u64, client: u64) -> String {
        let uid = job.created["uid"].as_str().map_or_else(String::new, |uid| format!("&uid={uid}"));
        job.update_path(round, &format!("c{client}"), &format!("weight={}{uid}", (self.weight)(round, client)))
    }

    /// Writes down a receipt. One may be given again and again.
    pub fn note(&self, round: u64, client: u64, receipt: &Value) {
        let receipt = receipt.as_str().expect("a receipt's name").to_owned();
        self.lock().entry((round, client)).or_default().insert(receipt);
    }

    /// Sends an update to a gateway that must accept it; gives its receipt.
    pub async fn accepted(&self, job: &Job, round: u64, client: u64) -> Value {
        let body = self.body(round, client);
        let answer = job.api.call("PUT", &self.path(job, round, client), &[], Some(body)).await;
        let receipt = answer.expect(202).json()["receipt"].clone();
        self.note(round, client, &receipt);
        receipt
    }

    /// How many receipts were given.
    pub fn count(&self) -> usize {
        self.lock().values().map(BTreeSet::len).sum()
    }

    /// Checks a job that is over, asking every gateway: each receipt has one fate, the committed ones are exactly the
    /// contribution sets, each client counts once, and the models are what follows from that. Gives the number of receipts
    /// whose updates were lost.
    pub async fn check(&self, job: &Job, apis: &[Api]) -> u64 {
        let versions = agreed(apis, "the list of models", async |api| {
            let listed = job.through(api).call("GET", "/models?limit=1000").await.expect(200).json();
            Some(listed["items"].clone())
        })
        .await;
        let contributors: BTreeMap<u64, u64> = versions.as_array().expect("a list").iter().map(version_of).collect();
        let mut sets: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let (known, mut lost) = (self.lock().clone(), 0);
        for ((round, client), receipts) in &known {
            for receipt in receipts {
                let fate = agreed(apis, &format!("receipt {receipt} of c{client} in round {round}"), async |api| {
                    fate(api, receipt).await
                })
                .await;
                match fate.state.as_str() {
                    "committed" => sets.entry(fate.model_version.expect("a version")).or_default().push(*client),
                    "lost" => lost += 1,
                    _ => panic!("receipt {receipt} of c{client} in round {round}, which is over: {fate:?}"),
                }
            }
        }
        for (version, count) in contributors.into_iter().filter(|(version, _)| *version > 0) {
            let set = sets.remove(&version).unwrap_or_default();
            let distinct: BTreeSet<u64> = set.iter().copied().collect();
            assert_eq!(distinct.len(), set.len(), "clients that count twice in version {version}: {set:?}");
            assert_eq!(count, set.len() as u64, "contributors of version {version}, and committed receipts: {set:?}");
            let model = agreed(apis, &format!("the file of version {version}"), async |api| {
                let path = format!("{}/model?version={version}", job.path);
                let answer = api.try_call("GET", &path, &[], None).await.ok()?;
                (answer.status == 200).then_some(answer.body)
            })
            .await;
            self.check_model(version, &model, &set);
        }
        assert!(sets.is_empty(), "receipts of versions that nobody lists: {sets:?}");
        lost
    }

    /// Each version is of the round of its number, because these jobs skip none.
    fn check_model(&self, version: u64, model: &[u8], clients: &[u64]) {
        let of = |client: &u64| ((self.weight)(version, *client), self.body(version, *client));
        let updates: Vec<_> = clients.iter().map(of).collect();
        match self.reference {
            Reference::Exact(exact) => {
                let right = exact.check(model, &updates);
                right.unwrap_or_else(|why| panic!("version {version} of {clients:?}: {why}"));
            }
            Reference::Median => assert_median(model, &updates),
            Reference::Mean => {
                let updates: Vec<_> = updates.iter().map(|(weight, body)| (*weight, read(body))).collect();
                assert_close(&read(model), &weighted_mean(&updates), 1e-6);
            }
        }
    }
}

fn assert_median(model: &[u8], updates: &[(f64, Vec<u8>)]) {
    let sent: Vec<_> = updates.iter().map(|(_, body)| read(body)).collect();
    for (name, found) in read(model) {
        for (i, found) in found.iter().enumerate() {
            let mut column: Vec<f64> = sent.iter().map(|values| values[&name][i]).collect();
            column.sort_by(f64::total_cmp);
            let expected = column[column.len() / 2];
            assert!(column.len() % 2 == 1 && *found == expected, "{name}[{i}] is {found}, the median of {column:?}");
        }
    }
}

fn version_of(item: &Value) -> (u64, u64) {
    (item["version"].as_u64().expect("a version"), item["contributors"].as_u64().unwrap_or(0))
}

/// What a gateway says of a receipt, once it is not on its way any more.
async fn fate(api: &Api, receipt: &str) -> Option<Fate> {
    let answer = api.try_call("GET", &format!("/v1/receipts/{receipt}"), &[], None).await.ok()?;
    if answer.status != 200 {
        return None;
    }
    let json = answer.json();
    let state = json["state"].as_str().expect("a state").to_owned();
    let is_over = !["accepted", "folded"].contains(&state.as_str());
    is_over.then(|| Fate { state, model_version: json["model_version"].as_u64() })
}

/// What every gateway says, once they all say the same.
pub(crate) async fn agreed<T: PartialEq + std::fmt::Debug>(
    apis: &[Api],
    what: &str,
    ask: impl AsyncFn(&Api) -> Option<T>,
) -> T {
    until(&format!("every gateway says the same of {what}"), async || {
        let mut said = Vec::new();
        for api in apis {
            said.push(ask(api).await?);
        }
        let first = said.remove(0);
        said.iter().all(|other| *other == first).then_some(first)
    })
    .await
}
