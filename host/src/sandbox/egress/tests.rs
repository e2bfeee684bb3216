use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, net::TcpListener};

use super::*;

/// Answers with the next of a list each time: a hostile name server.
struct Scripted(Mutex<VecDeque<Vec<IpAddr>>>);

#[async_trait]
impl Resolve for Scripted {
    async fn resolve(&self, _name: &str, _asking: Asking) -> io::Result<Vec<IpAddr>> {
        Ok(self.0.lock().pop_front().unwrap_or_default())
    }
}

fn client(allow: &[&str], private: &[&str], answers: &[&[&str]]) -> Client {
    let answers = answers.iter().map(|list| list.iter().map(|a| a.parse().unwrap()).collect()).collect();
    let policy = Policy {
        allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
        allow_private: private.iter().map(|text| text.parse().unwrap()).collect(),
        deny: Vec::new(),
    };
    Client::new(policy, Arc::new(Scripted(Mutex::new(answers))))
}

/// Answers each connection with `answer` and counts them.
async fn server(answer: impl Into<Vec<u8>>) -> (u16, Arc<AtomicUsize>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let answer = answer.into();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    (port, count, AbortOnDropHandle::new(task))
}

fn get(url: String) -> Request<Bytes> {
    Request::get(url).body(Bytes::new()).unwrap()
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

#[tokio::test]
async fn a_listed_private_address_is_reached_and_an_unlisted_one_is_not() {
    let (port, count, _server) = server(OK).await;
    let url = format!("http://127.0.0.1:{port}/");
    let refused = client(&["*"], &[], &[]).fetch(get(url.clone()), FetchLimits::default()).await.unwrap_err();
    assert!(refused.denied());
    assert!(refused.to_string().contains("egress_allow_private"), "{refused}");
    assert_eq!(count.load(Ordering::SeqCst), 0, "nothing may be sent");
    let answer = client(&["*"], &["127.0.0.1/32"], &[]).fetch(get(url), FetchLimits::default()).await.unwrap();
    assert_eq!(answer.into_body(), "hi");
}

#[tokio::test]
async fn an_empty_policy_denies() {
    let error = client(&[], &["0.0.0.0/0"], &[])
        .fetch(get("http://127.0.0.1:1/".into()), FetchLimits::default())
        .await
        .unwrap_err();
    assert!(error.denied());
    assert!(error.to_string().contains("`egress_allow`"), "{error}");
}

#[tokio::test]
async fn names_are_checked_after_resolution_and_not_resolved_again() {
    let (port, count, _server) = server(OK).await;
    let url = format!("http://public.example:{port}/");
    // A name that points inside is refused.
    let error =
        client(&["*"], &[], &[&["127.0.0.1"]]).fetch(get(url.clone()), FetchLimits::default()).await.unwrap_err();
    assert!(error.denied());
    assert!(!error.to_string().contains("127.0.0.1"), "what a name resolves to inside is not told: {error}");
    // The second answer, which points inside, is never asked for.
    let rebinding = client(&["*"], &[], &[&["192.0.2.1", "127.0.0.1"], &["127.0.0.1"]]);
    assert!(rebinding.fetch(get(url.clone()), FetchLimits::default()).await.unwrap_err().denied());
    assert_eq!(count.load(Ordering::SeqCst), 0);
    let allowed = client(&["*"], &["127.0.0.0/8"], &[&["127.0.0.1"]]);
    assert!(allowed.fetch(get(url), FetchLimits::default()).await.is_ok());
}

#[tokio::test]
async fn the_far_side_cannot_flood_or_stall() {
    let limits = FetchLimits { timeout: Duration::from_millis(300), response_bytes: 1000 };
    let big = format!("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{}", "x".repeat(5000));
    let (port, _, _server) = server(big).await;
    let client = client(&["*"], &["127.0.0.0/8"], &[]);
    let error = client.fetch(get(format!("http://127.0.0.1:{port}/")), limits).await.unwrap_err();
    assert!(matches!(error, EgressError::TooLarge(_)), "{error}");
    let headers = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(200_000));
    let (port, _, _server) = server(headers).await;
    assert!(matches!(client.fetch(get(format!("http://127.0.0.1:{port}/")), limits).await, Err(EgressError::Http(_))));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    assert!(matches!(client.fetch(get(url), limits).await, Err(EgressError::Timeout { .. })));
}

#[tokio::test]
async fn redirects_are_handed_back() {
    let (port, count, _server) =
        server("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n").await;
    let client = client(&["*"], &["127.0.0.0/8"], &[]);
    let answer = client.fetch(get(format!("http://127.0.0.1:{port}/")), FetchLimits::default()).await.unwrap();
    assert_eq!(answer.status(), 302);
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_port_is_opened_for_one_plugin_and_for_nobody_else() {
    let (port, count, _server) = server(OK).await;
    let url = format!("http://127.0.0.1:{port}/");
    let rule = format!("webhook@127.0.0.1:{port}");
    let client = client(&["*"], &[&rule], &[]);
    for other in [client.clone(), client.of_plugin("nexus")] {
        let refused = other.fetch(get(url.clone()), FetchLimits::default()).await.unwrap_err();
        assert!(refused.denied() && refused.to_string().contains("egress_allow_private"), "{refused}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
    let webhook = client.of_plugin("webhook");
    assert!(webhook.fetch(get(url), FetchLimits::default()).await.is_ok());
    let elsewhere = format!("http://127.0.0.1:{}/", port.checked_add(1).unwrap_or(1));
    let refused = webhook.fetch(get(elsewhere), FetchLimits::default()).await.unwrap_err();
    assert!(refused.denied(), "another port: {refused}");
}

#[tokio::test]
async fn what_is_denied_is_refused_whatever_allows_it() {
    let (port, count, _server) = server(OK).await;
    for deny in ["127.0.0.0/8".to_owned(), format!("127.0.0.1:{port}"), "inside.example".into(), "http://*:*".into()] {
        let policy = Policy {
            allow: vec!["*".parse().unwrap()],
            allow_private: vec!["0.0.0.0/0".parse().unwrap()],
            deny: vec![deny.parse().unwrap()],
        };
        let answers = VecDeque::from([vec!["127.0.0.1".parse().unwrap()]]);
        let client = Client::new(policy, Arc::new(Scripted(Mutex::new(answers))));
        let refused = client.fetch(get(format!("http://inside.example:{port}/")), FetchLimits::default()).await;
        let refused = refused.unwrap_err();
        assert!(refused.denied() && refused.to_string().contains("`egress_deny`"), "{deny}: {refused}");
        assert!(!refused.to_string().contains("127.0.0.1"), "what a name resolves to inside is not told: {refused}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

/// Accepts connections, reads what comes first, and answers with these bytes.
async fn handshakes_with(answer: &'static [u8]) -> EgressError {
    let (port, _, _server) = server(answer).await;
    let client = client(&["*"], &["127.0.0.1"], &[]);
    client.fetch(get(format!("https://127.0.0.1:{port}/")), FetchLimits::default()).await.unwrap_err()
}

#[tokio::test]
async fn a_far_side_that_hangs_up_in_the_handshake_is_away_and_not_untrusted() {
    let cut = handshakes_with(b"").await;
    assert!(matches!(cut, EgressError::Broken(..)) && !cut.denied(), "{cut:?}");
    // handshake_failure (RFC 8446, section 6).
    let alert = handshakes_with(&[21, 3, 3, 0, 2, 2, 40]).await;
    assert!(matches!(alert, EgressError::TlsAlert(..)) && !alert.denied(), "{alert:?}");
    let plain = handshakes_with(OK.as_bytes()).await;
    assert!(matches!(plain, EgressError::Tls(..)) && !plain.denied(), "{plain:?}");
}
