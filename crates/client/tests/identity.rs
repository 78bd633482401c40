//! Which job a call is for.

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use axum::body::Body;
use axum::http::{Method, Response};
use catchment_client::{Measurement, Update};
use catchment_types::JobUid;
use support::{Server, job, json};

const UID: &str = "0123456789abcdef0123456789abcdef";

/// A server that breaks the first upload off, says that three of its seven bytes are there, and takes the rest.
async fn breaks_off() -> Server {
    let mut first = true;
    let receipt = format!(
        r#"{{"receipt":"{UID}","uid":"{UID}","namespace":"default","job":"digits","round":3,"client":"c-1","digest":"{}",
        "weight":1,"state":"accepted","accepted_at":"2026-01-01T00:00:00.000Z"}}"#,
        "ab".repeat(32)
    );
    Server::start(move |seen| match seen.method {
        Method::HEAD => {
            let head = Response::builder().status(204).header("upload-offset", 3).header("upload-length", 7);
            Some(head.header("upload-complete", "?0").body(Body::empty()).unwrap())
        }
        Method::PUT if std::mem::take(&mut first) => None,
        _ => json(202, receipt.clone()),
    })
    .await
}

/// A job may be deleted and another have its name: each call says which it means.
#[tokio::test]
async fn calls_on_an_identified_job_say_its_uid() {
    let server = breaks_off().await;
    let job = job(&server.url).0.identified(UID.parse::<JobUid>().unwrap());
    let bare = Update::new(3, "c-1".parse().unwrap(), b"tensors".to_vec());
    job.submit(&bare).await.unwrap();
    let queries = |server: &Server| -> Vec<String> {
        let seen = server.seen.lock().unwrap();
        seen.iter().map(|seen| format!("{} {}", seen.method, seen.uri.query().unwrap_or_default())).collect()
    };
    assert_eq!(queries(&server), ["PUT", "HEAD", "PATCH"].map(|method| format!("{method} uid={UID}")));
    // A task says it as well.
    let server = breaks_off().await;
    let (job, _) = support::job(&server.url);
    let update = Update { task: Some(UID.parse().unwrap()), ..bare };
    job.submit(&update).await.unwrap();
    assert_eq!(queries(&server), ["PUT", "HEAD", "PATCH"].map(|method| format!("{method} task={UID}")));
    job.identified(UID.parse::<JobUid>().unwrap()).submit(&update).await.unwrap();
    assert_eq!(queries(&server).last(), Some(&format!("PUT task={UID}")));
    let server = Server::start(|_| json(201, r#"{"results":1,"num_samples":1,"metrics":{}}"#)).await;
    let job = support::job(&server.url).0.identified(UID.parse::<JobUid>().unwrap());
    let measured = Measurement {
        version: 3,
        client: "c-1".parse().unwrap(),
        num_samples: None,
        metrics: [("loss".to_owned(), 0.25)].into(),
    };
    job.through(None).report(&measured).await.unwrap();
    assert_eq!(server.last().uri.query(), Some(&*format!("uid={UID}")));
}
