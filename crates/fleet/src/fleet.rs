//! The members of a running cluster, kept up by what is said on the bus.

use crate::beat::{BEAT_BYTES_MAX, Beat, NodeBeat};
use crate::members::{Counts, Members};
use catchment_bus::{BusError, Events, Subscription};
use catchment_types::{LEVEL_MAX, NodeId, NodesView, read_object};
use futures::StreamExt;
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

/// What heartbeats are said on. The underscore keeps it apart from every namespace.
pub const BEATS: &str = "v1._fleet.member";

/// How often members speak, and what their silence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between two heartbeats.
    pub interval: Duration,
    /// After this much silence a node is given up, with all that it holds.
    pub lost_after: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), lost_after: Duration::from_secs(10) }
    }
}

impl Pace {
    /// After this much silence a member gets no more work.
    fn quiet_after(&self) -> Duration {
        (3 * self.interval).min(self.lost_after)
    }
}

/// What a member says of itself, asked for each time.
pub type Speak = Arc<dyn Fn() -> Vec<Beat> + Send + Sync>;

/// Who is there. Cheap to clone; the last clone's end leaves the cluster.
#[derive(Clone)]
pub struct Fleet {
    members: Arc<Mutex<Members>>,
    changes: watch::Sender<u64>,
    /// Told when there is something to say that should not wait for the next heartbeat.
    urgent: Arc<Notify>,
    alone: bool,
    _task: Arc<Option<AbortOnDropHandle<()>>>,
}

impl Fleet {
    /// One process that is everything: whoever else is spoken of is lost.
    pub fn alone(speak: &Speak) -> Self {
        let mut members = Members::new(Duration::MAX, Duration::MAX);
        for beat in speak() {
            members.hear(beat);
        }
        Self {
            members: Arc::new(Mutex::new(members)),
            changes: watch::Sender::new(0),
            urgent: Arc::default(),
            alone: true,
            _task: Arc::default(),
        }
    }

    /// Joins the cluster on this bus, saying `speak` each interval. Who says nothing hears only. `life`: random bytes,
    /// fresh for each start, by which this process knows its own voice.
    ///
    /// # Errors
    /// When heartbeats cannot be subscribed to.
    pub fn join(
        events: Arc<dyn Events>,
        speak: Speak,
        pace: Pace,
        life: [u8; 16],
    ) -> BoxFuture<'static, Result<Self, BusError>> {
        Box::pin(async move {
            let heard = events.subscribe(BEATS, None).await?;
            let voice = format!("v1._fleet.echo.{:032x}", u128::from_le_bytes(life));
            let echoes = events.subscribe(&voice, None).await?;
            let members = Arc::new(Mutex::new(Members::new(pace.quiet_after(), pace.lost_after)));
            let (changes, urgent) = (watch::Sender::new(0), Arc::<Notify>::default());
            let task = Task {
                events,
                members: members.clone(),
                changes: changes.clone(),
                urgent: urgent.clone(),
                speak,
                pace,
                voice,
                echo: Instant::now(),
            };
            let task = AbortOnDropHandle::new(tokio::spawn(task.run(heard, echoes)));
            Ok(Self { members, changes, urgent, alone: false, _task: Arc::new(Some(task)) })
        })
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there can be nobody else.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Changes when somebody comes, falls quiet or is lost.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Says at once what else the next heartbeat would: what it is made of has changed.
    pub fn say_now(&self) {
        self.urgent.notify_one();
    }

    /// Nodes that were heard lately, by name; cheap, and the same list until something changes.
    pub fn live(&self) -> Arc<[NodeBeat]> {
        self.members().live()
    }

    /// How many nodes there are, by what is known of them.
    pub fn counts(&self) -> Counts {
        self.members().counts()
    }

    /// What operators see of the cluster.
    pub fn view(&self) -> NodesView {
        let (live, wanted) = {
            let mut members = self.members();
            (members.live(), members.leader().and_then(|leader| leader.wanted))
        };
        NodesView { items: live.iter().map(Into::into).collect(), wanted, cursor: None }
    }

    /// A node that is not lost.
    pub fn node(&self, node: NodeId) -> Option<NodeBeat> {
        self.members().node(node).cloned()
    }

    /// Of these nodes, those to be given up. Whoever was never heard is waited for from now on.
    pub fn lost_of(&self, nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
        let nodes: Vec<NodeId> = nodes.into_iter().collect();
        let mut members = self.members();
        if self.alone {
            return nodes.into_iter().filter(|node| members.node(*node).is_none()).collect();
        }
        members.expect(nodes.iter().copied());
        let lost: Vec<NodeId> = members.lost().collect();
        lost.iter().filter(|node| !nodes.contains(node)).for_each(|node| members.forget(*node));
        lost.into_iter().filter(|node| nodes.contains(node)).collect()
    }

    /// The feature level that every member reads. `None` while there may be one who was not heard yet.
    pub fn level(&self) -> Option<u32> {
        if self.alone { Some(LEVEL_MAX) } else { self.members().level() }
    }

    /// Whether the coordinator with this name decides.
    pub fn is_leader(&self, id: u64) -> bool {
        self.alone || self.members().leader().is_some_and(|leader| leader.id == id)
    }
}

struct Task {
    events: Arc<dyn Events>,
    members: Arc<Mutex<Members>>,
    changes: watch::Sender<u64>,
    urgent: Arc<Notify>,
    speak: Speak,
    pace: Pace,
    /// What only this process listens on.
    voice: String,
    /// When this process heard itself last.
    echo: Instant,
}

impl Task {
    async fn run(mut self, mut heard: Subscription, mut echoes: Subscription) {
        let mut ticks = interval(self.pace.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let changed = tokio::select! {
                _ = ticks.tick() => {
                    self.say().await;
                    continue;
                }
                () = self.urgent.notified() => {
                    self.say_beats().await;
                    continue;
                }
                message = heard.next() => match message {
                    Some(message) => self.hear(&message.payload),
                    None => return,
                },
                echo = echoes.next() => match echo {
                    Some(_) => self.hear_self(),
                    None => return,
                },
            };
            if changed {
                self.changes.send_modify(|count| *count += 1);
            }
        }
    }

    async fn say(&self) {
        self.say_beats().await;
        self.publish(&self.voice, Vec::new()).await;
    }

    async fn say_beats(&self) {
        for beat in (self.speak)() {
            self.publish(BEATS, serde_json::to_vec(&beat).expect("plain fields serialise")).await;
        }
    }

    async fn publish(&self, subject: &str, payload: Vec<u8>) {
        if let Err(error) = self.events.publish(subject, payload.into()).await {
            tracing::debug!(%error, "say that we are here");
        }
    }

    /// Time counts from one echo to the next, and not for much longer than it should take.
    fn hear_self(&mut self) -> bool {
        let elapsed = std::mem::replace(&mut self.echo, Instant::now()).elapsed();
        self.lock().pass(elapsed.min(2 * self.pace.interval))
    }

    fn hear(&self, payload: &[u8]) -> bool {
        let beat = (payload.len() <= BEAT_BYTES_MAX).then(|| read_object::<Beat>(payload));
        match beat {
            Some(Ok(beat)) if beat.is_usable() => self.lock().hear(beat),
            Some(Ok(_)) => {
                tracing::debug!("a heartbeat names an address that no node has");
                false
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "read a heartbeat");
                false
            }
            None => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beat::CoordinatorBeat;
    use catchment_bus::Bus;
    use tokio::time::sleep;

    fn node(id: u64) -> Speak {
        Arc::new(move || {
            let (member, node) = ("node", NodeId(id));
            let beat =
                serde_json::json!({ "member": member, "node": node, "name": "n", "url": "http://h:1", "pass": "p" });
            vec![serde_json::from_value(beat).unwrap()]
        })
    }

    fn names(fleet: &Fleet) -> Vec<u64> {
        fleet.live().iter().map(|beat| beat.node.0).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn members_hear_each_other_and_notice_who_left() {
        let bus = Bus::in_memory();
        let one = Fleet::join(bus.events.clone(), node(1), Pace::default(), [1; 16]).await.unwrap();
        let two = Fleet::join(bus.events.clone(), node(2), Pace::default(), [2; 16]).await.unwrap();
        let coordinator: Speak =
            Arc::new(|| vec![Beat::Coordinator(CoordinatorBeat { id: 9, wanted: Some(4), level: 1 })]);
        let leader = Fleet::join(bus.events.clone(), coordinator, Pace::default(), [3; 16]).await.unwrap();
        sleep(Duration::from_secs(2)).await;
        assert_eq!((names(&one), names(&leader)), (vec![1, 2], vec![1, 2]));
        assert!(leader.is_leader(9) && !leader.is_leader(8));
        assert_eq!((one.view().wanted, one.view().items.len()), (Some(4), 2));
        drop(two);
        let mut changes = leader.watch();
        changes.mark_unchanged();
        sleep(Duration::from_secs(5)).await;
        assert!(changes.has_changed().unwrap());
        assert_eq!((names(&one), leader.lost_of([NodeId(2)])), (vec![1], vec![]));
        sleep(Duration::from_secs(6)).await;
        assert_eq!(leader.lost_of([NodeId(1), NodeId(2)]), [NodeId(2)]);
        // Who holds something and was never heard is waited for as long.
        assert_eq!(leader.lost_of([NodeId(3)]), []);
        sleep(Duration::from_secs(9)).await;
        assert_eq!(leader.lost_of([NodeId(3)]), []);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(leader.lost_of([NodeId(3)]), [NodeId(3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_an_address_that_no_node_has_is_not_heard() {
        let bus = Bus::in_memory();
        let fleet = Fleet::join(bus.events.clone(), node(1), Pace::default(), [1; 16]).await.unwrap();
        for (id, url) in [(2, "https://h:1"), (3, "file:///etc/passwd"), (4, "http://user@h:1"), (5, "http://h:1")] {
            let beat =
                serde_json::json!({ "member": "node", "node": NodeId(id), "name": "n", "url": url, "pass": "p" });
            bus.events.publish(BEATS, beat.to_string().into()).await.unwrap();
        }
        sleep(Duration::from_secs(2)).await;
        assert_eq!(names(&fleet), [1, 5]);
    }

    #[tokio::test]
    async fn alone_everybody_else_is_lost() {
        let fleet = Fleet::alone(&node(1));
        assert_eq!(fleet.lost_of([NodeId(1), NodeId(2)]), [NodeId(2)]);
        assert!(fleet.is_leader(0));
        assert_eq!(names(&fleet), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_urgent_does_not_wait_for_the_next_heartbeat() {
        let bus = Bus::in_memory();
        let draining = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (said, plain) = (draining.clone(), node(1));
        let speak: Speak = Arc::new(move || {
            let mut beats = plain();
            if let Beat::Node(beat) = &mut beats[0] {
                beat.draining = said.load(std::sync::atomic::Ordering::Relaxed);
            }
            beats
        });
        let pace = Pace { interval: Duration::from_secs(60), lost_after: Duration::from_secs(600) };
        let one = Fleet::join(bus.events.clone(), speak, pace, [1; 16]).await.unwrap();
        let two = Fleet::join(bus.events.clone(), node(2), pace, [2; 16]).await.unwrap();
        sleep(Duration::from_secs(61)).await;
        let mut changes = two.watch();
        changes.mark_unchanged();
        draining.store(true, std::sync::atomic::Ordering::Relaxed);
        one.say_now();
        sleep(Duration::from_secs(1)).await;
        assert!(changes.has_changed().unwrap(), "it is news that somebody drains");
        assert_eq!(two.counts(), Counts { live: 1, draining: 1, ..Counts::default() });
    }
}
