//! The words every other crate speaks: identities, the job spec, tensor layouts, log records, descriptors, answers
//! and errors.
//!
//! No I/O, no clock, no randomness. Everything that comes from outside is parsed into one of these types once, at the
//! edge; without that, every later crate would have to doubt its input again.
#![forbid(unsafe_code)]

mod descriptor;
mod dtype;
mod env;
mod ids;
mod json;
mod printable;
mod problem;
mod record;
mod slab_id;
mod spec;
mod steps;
mod tensors;
mod views;

pub use descriptor::{Descriptor, DescriptorError, FunctionId, Kind};
pub use dtype::Dtype;
pub use env::{Clock, Entropy, TimeMs, rfc3339};
pub use ids::{BadId, ClientId, Digest, JobUid, LogId, Name, NodeId, ReceiptId, Role, StateHash, TaskId};
pub use json::{read_object, read_value};
pub use printable::{OneLine, printable};
pub use problem::{Code, FieldError, Problem};
pub use record::{
    Accept, CloseReason, EvaluationResult, Footprint, FunctionClass, JobAction, LEVEL_MAX, ModelCommit, Place, Record,
    RecordV1,
};
pub use slab_id::SlabId;
pub use spec::{
    Better, Buffered, Checkpoints, DurationText, Evaluate, Exact, JobLimits, JobSpec, Mode, OnShortfall, Policy,
    SPEC_BYTES_MAX, Selection, SpecPatch, Staleness, Topology, UpdateKind,
};
pub use steps::{NoSteps, Step, Steps};
pub use tensors::{
    ALIGN_ELEMENTS, Added, Bounds, Cause, Fit, Header, HeaderError, Layout, LayoutError, Limits, Placed, Rule, Section,
    Segment, SpecRuleError, Template, TensorInfo, TensorRule, TensorTemplate, UpdateLayout,
};
pub use views::{
    CheckIn, EvaluationView, FunctionView, JobState, JobView, ModelView, NodeView, NodesView, Page, Receipt,
    ReceiptState, RoundNodeView, RoundState, RoundView, RouteView, RunnerView, RunnersView, Task, TaskKind,
};
