//! Clients that do not give up: any gateway will do, an update is sent until there is a definite answer, and again when its
//! receipt says that it was lost.

use catchment_tests::{Answer, Api, Job, Sent};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long a call may take.
const CALL_TIME_MAX: Duration = Duration::from_secs(4);

/// One client.
pub struct Client {
    number: u64,
    random: StdRng,
    gateways: Vec<Api>,
    job: Job,
    sent: Arc<Sent>,
    /// The round of its newest update, and its receipt.
    newest: Option<(u64, String)>,
    /// Rounds for which it sent something and has no definite answer.
    unsure: BTreeSet<u64>,
}

impl Client {
    pub fn new(number: u64, seed: u64, addresses: &[String], job: &Job, sent: Arc<Sent>) -> Self {
        let gateways = addresses.iter().map(|address| Api::impatient(address, CALL_TIME_MAX)).collect();
        let random = StdRng::seed_from_u64(seed << 8 | number);
        Self { number, random, gateways, job: job.clone(), sent, newest: None, unsure: BTreeSet::new() }
    }

    /// Takes part until the job is over. Gives the rounds for which it does not know what became of its update.
    pub async fn run(mut self) -> Vec<(u64, u64)> {
        loop {
            let pause = self.random.random_range(20..250);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let Some(round) = self.round().await else { continue };
            let state = round["job_state"].as_str().unwrap_or_default();
            if ["completed", "failed", "stopped"].contains(&state) {
                return self.unsure.into_iter().map(|round| (round, self.number)).collect();
            }
            let number = round["round"].as_u64().unwrap_or_default();
            match &self.newest {
                Some((newest, _)) if *newest > number => {}
                Some((newest, receipt)) if *newest == number => {
                    let receipt = receipt.clone();
                    self.look_after(&receipt).await;
                }
                _ if round["state"] == "open" => self.submit(number).await,
                _ => {}
            }
        }
    }

    fn gateway(&mut self) -> Api {
        let chosen = self.random.random_range(0..self.gateways.len());
        self.gateways[chosen].clone()
    }

    async fn get(&mut self, path: &str) -> Option<Answer> {
        self.gateway().try_call("GET", path, &[], None).await.ok().filter(|answer| answer.status == 200)
    }

    /// The newest round, as some gateway knows it.
    async fn round(&mut self) -> Option<Value> {
        let path = format!("{}/round", self.job.path);
        self.get(&path).await.map(|answer| answer.json())
    }

    /// A receipt that says `lost` is as good as none.
    async fn look_after(&mut self, receipt: &str) {
        let answer = self.get(&format!("/v1/receipts/{receipt}")).await;
        if answer.is_some_and(|answer| answer.json()["state"] == "lost") {
            self.newest = None;
        }
    }

    /// One attempt. Without a definite answer the next look at the round leads here again.
    async fn submit(&mut self, round: u64) {
        let is_first = self.unsure.insert(round);
        let (path, body) = (self.sent.path(&self.job, round, self.number), self.sent.body(round, self.number));
        let Ok(answer) = self.gateway().try_call("PUT", &path, &[], Some(body)).await else { return };
        match answer.status {
            200 | 202 => {
                let receipt = answer.json()["receipt"].clone();
                self.sent.note(round, self.number, &receipt);
                self.newest = Some((round, receipt.as_str().expect("a name").to_owned()));
                // An attempt that was never answered may still be accepted, should this receipt be lost.
                if is_first {
                    self.unsure.remove(&round);
                }
            }
            // Too late here and now. Who knows what an earlier attempt came to, or whether the round opens again.
            410 => {}
            // A gateway that has not read as far yet may not know the round; a spoiled link may be too slow for the body.
            status => assert!([404, 408, 429, 503].contains(&status), "{status}: {}", answer.text()),
        }
    }
}
