//! Everything a stranger says of an update, and its body in any cuts: never a panic, never a byte outside the slab.
#![no_main]

use catchment_ingest::{Head, Part, Said, Scatter, UpdateDigest, parse_digest, parse_metrics};
use catchment_types::{Dtype, Fit, Header, Layout, Limits};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static MODEL: LazyLock<Layout> = LazyLock::new(|| {
    let text = br#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"n":{"dtype":"I64","shape":[],"data_offsets":[12,20]}}"#;
    let header = Header::parse(text, &Limits::default()).expect("a good header");
    Layout::new(&header, &[]).expect("a good layout")
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
    let fit = Fit::new(&MODEL, &header, &[Dtype::Bf16]).ok()?;
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
