//! Bodies of several pieces, and bodies that go on after their end.

use crate::{mean_of, update};
use catchment_tests::{Bus, Raw, Server, Tensor, file, on_both_buses, read, request_head};
use serde_json::json;
use std::io::Write;

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

/// A zstd frame of blocks as they are, with a window of 2^`exponent` KiB. (What compresses is not the point here.)
pub fn zstd(blocks: &[&[u8]], exponent: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3];
    let blocks: Vec<&[u8]> = blocks.iter().flat_map(|block| block.chunks(1000)).collect();
    for (i, block) in blocks.iter().enumerate() {
        let header = (block.len() as u32) << 3 | u32::from(i + 1 == blocks.len());
        frame.extend(&header.to_le_bytes()[..3]);
        frame.extend(*block);
    }
    frame
}

/// A zstd frame of nothing.
fn empty() -> Vec<u8> {
    vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0]
}

fn skippable(bytes: &[u8]) -> Vec<u8> {
    [&[0x5a, 0x2a, 0x4d, 0x18], &(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
}

/// What stands for a body, and how it is encoded.
fn whole(body: &[u8]) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let (first, second) = body.split_at(body.len() / 2);
    let several = |pieces: Vec<Vec<u8>>| pieces.concat();
    vec![
        ("two members", "gzip", several(vec![gzip(first), gzip(second)])),
        ("a member for each kilobyte", "gzip", body.chunks(1000).flat_map(gzip).collect()),
        ("nothing first and last", "gzip", several(vec![gzip(&[]), gzip(body), gzip(&[]), gzip(&[])])),
        ("two frames", "zstd", several(vec![zstd(&[first], 0), zstd(&[second], 0)])),
        ("a larger window in the second", "zstd", several(vec![zstd(&[first], 0), zstd(&[second], 13)])),
        ("a frame for each kilobyte", "zstd", body.chunks(1000).flat_map(|part| zstd(&[part], 0)).collect()),
        (
            "frames to be skipped",
            "zstd",
            several(vec![
                skippable(b"first"),
                zstd(&[first], 0),
                skippable(&[]),
                zstd(&[second], 0),
                skippable(b"last"),
            ]),
        ),
        ("empty frames", "zstd", several(vec![empty(), zstd(&[first], 0), empty(), zstd(&[second], 0), empty()])),
    ]
}

/// What does not, with the answer that it gets.
fn spoilt(body: &[u8]) -> Vec<(&'static str, &'static str, Vec<u8>, u16, &'static str)> {
    let refused = |what, encoding, bytes| (what, encoding, bytes, 422, "invalid_safetensors");
    let truncated = |what, encoding, bytes| (what, encoding, bytes, 400, "truncated");
    let mut damaged = gzip(body);
    let at = damaged.len() - 6;
    damaged[at] ^= 1;
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 5].to_vec();
    vec![
        refused("rubbish after a member", "gzip", [gzip(body), b"rubbish".to_vec()].concat()),
        refused("a byte after a member", "gzip", [gzip(body), vec![b'x']].concat()),
        refused("zeros after a member", "gzip", [gzip(body), vec![0; 512]].concat()),
        refused("a frame after a member", "gzip", [gzip(body), empty()].concat()),
        refused("a member whose sum is wrong", "gzip", damaged),
        refused("no member", "gzip", body.to_vec()),
        refused("more data in a second member", "gzip", [gzip(body), gzip(b"more")].concat()),
        refused("rubbish after a frame", "zstd", [zstd(&[body], 0), b"rubbish".to_vec()].concat()),
        refused("zeros after a frame", "zstd", [zstd(&[body], 0), vec![0; 512]].concat()),
        refused("rubbish after a skipped frame", "zstd", [zstd(&[body], 0), skippable(b"x"), vec![1]].concat()),
        refused("no frame", "zstd", body.to_vec()),
        refused("more data in a second frame", "zstd", [zstd(&[body], 0), zstd(&[b"more"], 0)].concat()),
        truncated("a member that is cut", "gzip", cut(gzip(body))),
        truncated("a second member that is cut", "gzip", [gzip(body), cut(gzip(&[]))].concat()),
        truncated("a member's first byte", "gzip", [gzip(body), vec![0x1f]].concat()),
        truncated("a frame that is cut", "zstd", cut(zstd(&[body], 0))),
        truncated("a frame's first bytes", "zstd", [zstd(&[body], 0), vec![0x28, 0xb5]].concat()),
        truncated("a skipped frame that is cut", "zstd", [zstd(&[body], 0), cut(skippable(b"0123456789"))].concat()),
        truncated("nothing", "gzip", vec![]),
        truncated("nothing", "zstd", vec![]),
        truncated("frames of nothing", "zstd", [empty(), empty()].concat()),
        ("too large a window", "zstd", zstd(&[body], 14), 415, "unsupported_encoding"),
    ]
}

on_both_buses! {
    async fn a_body_may_be_several_members_or_frames(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 8, "rounds": 1}), &update(0.0)).await;
        let body = update(1.5);
        let goal = whole(&body).len();
        assert_eq!(goal, 8);
        for (k, (what, encoding, bytes)) in whole(&body).into_iter().enumerate() {
            let (client, headers) = (format!("c{k}"), [("content-encoding", encoding)]);
            let answer = job.submit_with(1, &client, "", &headers, &bytes).await;
            assert_eq!(answer.status, 202, "{what}, {encoding}: {}", answer.text());
            // It is the same update as the plain one, in whatever pieces it comes again.
            assert_eq!(job.submit(1, &client, "", &body).await.expect(200).json()["receipt"], answer.json()["receipt"]);
            job.submit_with(1, &client, "", &headers, &bytes).await.expect(200);
        }
        job.in_state("completed").await;
        assert_eq!(read(&job.model(1).await)["w"], mean_of(&[1.5]));
        server.holds_no_slabs().await;
    }

    /// The connection hands a body on in any pieces, and a member may end at any byte of it.
    async fn members_may_be_cut_anywhere(bus: Bus) {
        let server = Server::start(bus).await;
        let tiny = |value: f32| file(&[Tensor::f32("w", &[4], &[value; 4])]);
        let job = server.api().begin("a", json!({"goal": 100_000, "rounds": 1}), &tiny(0.0)).await;
        let body = tiny(2.0);
        for cut in 0..=body.len() {
            let (first, second) = body.split_at(cut);
            for (encoding, bytes) in
                [("gzip", [gzip(first), gzip(second)].concat()), ("zstd", [empty(), zstd(&[first, second], 0)].concat())]
            {
                let headers = [("content-encoding", encoding)];
                let answer = job.submit_with(1, &format!("{encoding}{cut}"), "", &headers, &bytes).await;
                assert_eq!(answer.status, 202, "{encoding} cut at {cut}: {}", answer.text());
            }
        }
        // Two members, and the connection's pieces are cut at each byte around where one ends.
        let (first, second) = (gzip(&body[..40]), gzip(&body[40..]));
        let whole = [&first[..], &second].concat();
        for cut in first.len() - 9..first.len() + 12 {
            let mut raw = Raw::connect(server.address()).await;
            let length = whole.len().to_string();
            let headers = [("content-encoding", "gzip"), ("content-length", length.as_str())];
            raw.send(request_head(&job.update_path(1, &format!("cut{cut}"), ""), &headers).as_bytes()).await;
            raw.send(&whole[..cut]).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            raw.send(&whole[cut..]).await;
            raw.answer().await.expect("an answer").expect(202);
        }
    }

    async fn what_is_no_member_or_frame_is_refused(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 2}), &update(0.0)).await;
        let fresh = server.api().create("fresh", json!({})).await;
        let body = update(1.0);
        for (what, encoding, bytes, status, code) in spoilt(&body) {
            let headers = [("content-encoding", encoding)];
            let answer = job.submit_with(1, "c", "", &headers, &bytes).await;
            assert_eq!(answer.status, status, "{what}, {encoding}: {}", answer.text());
            answer.problem(status, code);
            let path = format!("{}/model", fresh.path);
            let answer = fresh.api.call("PUT", &path, &headers, Some(bytes)).await;
            assert_eq!(answer.status, status, "a model of {what}, {encoding}: {}", answer.text());
        }
        assert_eq!(job.round().await["received"], 0);
        let (what, encoding, bytes) = whole(&update(0.0)).remove(0);
        let path = format!("{}/model", fresh.path);
        let answer = fresh.api.call("PUT", &path, &[("content-encoding", encoding)], Some(bytes)).await;
        assert_eq!(answer.status, 201, "a model of {what}: {}", answer.text());
        assert_eq!(fresh.model(0).await, update(0.0));
        server.holds_no_slabs().await;
    }

    /// Trailers of a chunked body are no part of it; what goes on after the last tensor is.
    async fn a_chunked_body_ends_with_its_last_chunk(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 2}), &update(0.0)).await;
        let body = update(1.0);
        let send = async |client: &str, body: &[u8], end: &str| {
            let mut raw = Raw::connect(server.address()).await;
            let headers = [("transfer-encoding", "chunked"), ("trailer", "x-sum")];
            raw.send(request_head(&job.update_path(1, client, ""), &headers).as_bytes()).await;
            raw.send(format!("{:x}\r\n", body.len()).as_bytes()).await;
            raw.send(&[body, b"\r\n", end.as_bytes()].concat()).await;
            raw.answer().await.expect("an answer")
        };
        send("c", &body, "0\r\nx-sum: 17\r\nx-more: 18\r\n\r\n").await.expect(202);
        send("d", &[&body[..], &[0]].concat(), "0\r\n\r\n").await.problem(422, "invalid_safetensors");
        send("d", &body, "1\r\n\0\r\n0\r\n\r\n").await.problem(422, "invalid_safetensors");
        assert_eq!(job.submit(1, "c", "", &body).await.expect(200).json()["round"], 1);
    }
}
