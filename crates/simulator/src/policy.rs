//! What is compared: Catchment, Catchment with one thing done otherwise, and what is used without it.

use serde::{Deserialize, Serialize};

/// Where an update goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placing {
    /// As the planner says.
    Planned,
    /// To the node with the fewest uploads, as load balancers do.
    LeastConnections,
}

/// How many instances there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// As the planner says.
    Planned,
    /// As Kubernetes' horizontal autoscaler: every 15 s to 70% of use, a tenth of tolerance, never below one, down only to
    /// the most of the last five minutes.
    Threshold,
    /// One a core, on every node, all the time.
    AlwaysOn,
}

/// When updates are folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Folding {
    /// As they come.
    Eager,
    /// When the round is closed, or there is no room for more.
    Lazy,
}

/// How an update gets from the gateway to the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataPath {
    /// By descriptor; it stays where it is.
    SharedMemory,
    /// Through a message broker, and the partials of a node's instances too.
    Broker,
}

/// One way to do things.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What it is called.
    pub name: String,
    /// Where an update goes.
    pub placing: Placing,
    /// How many instances there are.
    pub scaling: Scaling,
    /// When updates are folded.
    pub folding: Folding,
    /// Whether instances outlive their round and change roles.
    pub reuse: bool,
    /// Whether an instance is a container rather than a runner.
    pub containers: bool,
    /// How an update gets to the function.
    pub data_path: DataPath,
}

impl Policy {
    /// Catchment.
    pub fn catchment() -> Self {
        Self {
            name: "catchment".to_owned(),
            placing: Placing::Planned,
            scaling: Scaling::Planned,
            folding: Folding::Eager,
            reuse: true,
            containers: false,
            data_path: DataPath::SharedMemory,
        }
    }

    /// Catchment first, then what it is compared with.
    pub fn all() -> Vec<Self> {
        let but = |name: &str, change: fn(&mut Self)| {
            let mut policy = Self { name: name.to_owned(), ..Self::catchment() };
            change(&mut policy);
            policy
        };
        vec![
            Self::catchment(),
            but("least connections", |policy| policy.placing = Placing::LeastConnections),
            but("threshold scaling", |policy| policy.scaling = Scaling::Threshold),
            but("lazy folding", |policy| policy.folding = Folding::Lazy),
            but("no reuse", |policy| policy.reuse = false),
            but("no reuse, containers", |policy| (policy.reuse, policy.containers) = (false, true)),
            but("serverless, broker", |policy| {
                policy.placing = Placing::LeastConnections;
                policy.scaling = Scaling::Threshold;
                policy.folding = Folding::Lazy;
                policy.containers = true;
                policy.reuse = false;
                policy.data_path = DataPath::Broker;
            }),
            but("always-on server", |policy| {
                policy.placing = Placing::LeastConnections;
                policy.scaling = Scaling::AlwaysOn;
            }),
        ]
    }
}
