//! Everything a stranger says of an update, and its body in any cuts: never a panic, never a byte outside the slab.
#![no_main]

use catchment_ingest::{Head, Part, Said, Scatter, UpdateDigest, parse_digest, parse_metrics};
use catchment_types::{Dtype, Fit, Header, Layout, Limits, Rule, TensorRule};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static MODEL: LazyLock<Layout> = LazyLock::new(|| {
    let text = br#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"n":{"dtype":"I64","shape":[],"data_offsets":[12,20]}}"#;
    let header = Header::parse(text, &Limits::default()).expect("a good header");
    Layout::new(&header, &[]).expect("a good layout")
});

/// Float types that an update may have, any of them in any of its tensors.
const FLOATS: [Dtype; 6] = [Dtype::F64, Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::F8E4M3, Dtype::F8E5M2];
/// With two tensors in a segment, a maximum of whole numbers, and a bound on how near to zero numbers may be.
static MIXED: LazyLock<Layout> = LazyLock::new(|| {
    let text = br#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"v":{"dtype":"F32","shape":[70],"data_offsets":[12,292]},
        "n":{"dtype":"U64","shape":[],"data_offsets":[292,300]}}"#;
    let header = Header::parse(text, &Limits::default()).expect("a good header");
    let rules = [TensorRule { pattern: "n".to_owned(), rule: Rule::Max }];
    Layout::new(&header, &rules).expect("a good layout")
});

fuzz_target!(|input: (String, String, u8, Vec<u8>)| {
    let (query, header, step, body) = input;
    let said = Said::parse(&query).unwrap_or_default();
    let metrics = parse_metrics(Some(&header)).unwrap_or_default();
    parse_digest("Catchment-Digest", Some(&header)).ok();
    Part::parse(|name| Some(if name == "upload-offset" { &*query } else { &*header })).ok();
    Part::parse(|name| Some(if name == "upload-offset" { &*header } else { &*query })).ok();
    let declared = said.num_samples.is_some().then_some(body.len() as u64);
    receive(&body, usize::from(step).max(1), declared, said.weight.unwrap_or(1.0), &metrics);
});

fn receive(
    body: &[u8],
    step: usize,
    declared: Option<u64>,
    weight: f64,
    metrics: &std::collections::BTreeMap<String, f64>,
) -> Option<()> {
    let mut head = Head::new(declared);
    let mut digest = UpdateDigest::default();
    let mut at = 0;
    let header = loop {
        let chunk = body.get(at..)?;
        let chunk = chunk.get(..step.min(chunk.len())).filter(|chunk| !chunk.is_empty())?;
        let (taken, header) = head.feed(chunk).ok()?;
        at += taken;
        if let Some(header) = header {
            break header;
        }
    };
    let mixed = |_| Fit::new(&MIXED, &header, &FLOATS).map(|fit| fit.at_least(&MIXED, 1e-300));
    let fit = Fit::new(&MODEL, &header, &[Dtype::Bf16]).or_else(mixed).ok()?;
    let mut memory = vec![0; fit.slab_bytes as usize];
    let fit = std::sync::Arc::new(fit);
    let mut scatter = Scatter::new(fit.clone());
    let copied = body[at..].chunks(step).try_for_each(|chunk| {
        digest.feed(chunk);
        scatter.feed(chunk, &mut memory)
    });
    let copied = copied.and_then(|()| scatter.finish(&mut memory));
    digest.finish(weight, 1, metrics);
    // The way without a copy comes to the same: an update, or the same refusal.
    let (mut received, mut sink, mut rest) = (vec![0; fit.slab_bytes as usize], [0; 64], &body[at..]);
    let mut scatter = Scatter::new(fit);
    let landed = loop {
        let mut room = scatter.room(&mut received, &mut sink, step);
        let taken = std::io::Read::read_vectored(&mut rest, &mut room).expect("memory reads");
        if taken == 0 && !rest.is_empty() {
            // More than the header describes.
            break scatter.feed(rest, &mut received);
        }
        if taken == 0 {
            break scatter.finish(&mut received);
        }
        if let Err(problem) = scatter.landed(taken, &mut received, &sink, |_| ()) {
            break Err(problem);
        }
    };
    assert_eq!(copied.is_ok(), landed.is_ok());
    assert!(copied.is_err() || received == memory);
    Some(())
}
