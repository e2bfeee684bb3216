//! Guests that misuse the network: what they send, where, and how long they have themselves answered.

use super::*;

#[tokio::test]
async fn a_thousand_requests_are_cut_off() {
    let yard = Yard::new();
    let limits = Limits { http_requests: 20, refusals: 1000, cpu: Duration::from_secs(30), ..Limits::default() };
    let told = yard.main(&yard.guest(&rust("requests")), limits).await;
    assert_eq!(told.printed, "20 of 1000\n", "{told:?}");
    assert_eq!(yard.far.connections.lock().len(), 20);
    assert!(told.denials.iter().any(|why| why.contains("more than 20 requests")), "{told:?}");
}

#[tokio::test]
async fn a_slow_drip_is_told_to_the_guest_before_the_call_ends() {
    let yard = Yard::with(Bounds::default(), |_| "drip".to_owned());
    let guest = yard.guest(&rust("drip"));
    let limits = Limits { http_exchange: Duration::from_millis(100), ..Limits::default() };
    let told = yard.main(&guest, limits).await;
    let timeout = "refused HTTP response timeout";
    assert_eq!(told.ended, Ok(()), "{told:?}");
    // These words, and no backtrace of the host's: `tests/run` switches them on.
    assert_eq!(told.printed, format!("first: {timeout}\nsecond: {timeout}\n"), "{told:?}");
    // However much time a request is given: the call has less.
    let limits = Limits { http_exchange: Duration::from_secs(60), wall: Duration::from_secs(4), ..Limits::default() };
    let told = yard.main(&guest, limits).await;
    let at_once = "refused ErrorCode::HttpResponseTimeout";
    assert_eq!((told.ended, told.printed), (Ok(()), format!("first: {timeout}\nsecond: {at_once}\n")));
}

#[tokio::test]
async fn a_drip_is_no_computing() {
    // A byte each 10 ms, three times as often as the processor's limit allows in its own time.
    let yard = Yard::with(Bounds::default(), |_| "drip".to_owned());
    let (cpu, http_exchange) = (Duration::from_secs(1), Duration::from_secs(3));
    let told = yard.main(&yard.guest(&rust("drip")), Limits { cpu, http_exchange, ..Limits::default() }).await;
    let timeout = "refused HTTP response timeout";
    let expected = format!("first: {timeout}\nsecond: {timeout}\n");
    assert_eq!((told.ended.clone(), told.printed.as_str()), (Ok(()), expected.as_str()), "{told:?}");
    assert!(!told.moved, "{told:?}");
}

#[tokio::test]
async fn a_guest_says_how_long_the_parts_of_a_request_may_take() {
    let yard =
        Yard::with(Bounds::default(), |target| if target.contains("silent") { "silent" } else { "halts" }.to_owned());
    let told = yard.main(&yard.guest(&rust("timeouts")), Limits::default()).await;
    let expected = "first byte: refused ErrorCode::HttpResponseTimeout\nbetween: refused connection read timeout\n";
    assert_eq!(told.printed, expected, "{told:?}");
}

#[tokio::test]
async fn names_that_nobody_answers_for_are_few_at_once() {
    let yard = Yard::new();
    let limits = Limits { http_exchange: Duration::from_millis(200), ..Limits::default() };
    let told = yard.main(&yard.guest(&rust("names")), limits).await;
    assert_eq!((told.ended.clone(), told.printed.as_str()), (Ok(()), "begun: 50\n"), "{told:?}");
    assert_eq!(yard.far.lookups(), 4, "threads for names of one domain");
    assert!(yard.far.connections.lock().is_empty());
}

#[tokio::test]
async fn no_tunnel_no_mirror_and_no_framing_of_its_own() {
    let yard = Yard::with(Bounds::default(), |_| "{request}".to_owned());
    let told = yard.main(&yard.guest(&rust("methods")), Limits::default()).await;
    for (what, line) in ["connect", "trace", "other"].iter().zip(told.printed.lines()) {
        assert!(line.starts_with(&format!("{what}: refused")), "{told:?}");
    }
    let requests = yard.far.requests.lock().clone();
    let [request] = requests.as_slice() else { panic!("{requests:?}") };
    let request = request.to_ascii_lowercase();
    let lengths: Vec<&str> = request.lines().filter(|line| line.starts_with("content-length:")).collect();
    assert_eq!(lengths, ["content-length: 5"], "{request}");
    assert!(!request.contains("\r\nte:") && !request.contains("trailer"), "{request}");
}

#[tokio::test]
async fn a_name_that_turns_inside_leads_nowhere() {
    let yard = Yard::new();
    yard.names(&[&["93.184.215.14", "127.0.0.1", "10.0.0.1"], &["127.0.0.1"]]);
    let told = yard.main(&yard.guest(&rust("rebinding")), Limits::default()).await;
    assert!(told.printed.starts_with("first: 200 hello\nsecond: refused"), "{told:?}");
    let connections = yard.far.connections.lock().clone();
    assert_eq!(connections, [("http://api.example".to_owned(), vec!["93.184.215.14".parse().unwrap()])]);
    assert!(told.denials.iter().any(|why| why.contains("egress_allow_private")), "{told:?}");
    assert!(!told.denials.iter().any(|why| why.contains("127.0.0.1")), "what is inside is not told: {told:?}");
}

#[tokio::test]
async fn a_redirect_inside_leads_nowhere() {
    for inside in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[::1]:9090/metrics",
        "http://127.0.0.1:9090/metrics",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://[64:ff9b::7f00:1]/",
        "http://0.0.0.0/",
    ] {
        let yard = Yard::with(Bounds::default(), move |_| format!("302 {inside}"));
        let told = yard.main(&yard.guest(&rust("redirect")), Limits::default()).await;
        assert!(told.printed.starts_with("followed: refused"), "{inside}: {told:?}");
        assert_eq!(yard.far.connections.lock().len(), 1, "{inside}: only where it was let");
        assert!(told.denials.iter().any(|why| why.contains("egress_allow_private")), "{inside}: {told:?}");
    }
}

#[tokio::test]
async fn no_line_break_gets_into_a_request() {
    let yard = Yard::new();
    let told = yard.main(&yard.guest(&rust("crlf")), Limits::default()).await;
    for (what, line) in ["value", "name", "path", "authority", "secret"].iter().zip(told.printed.lines()) {
        assert!(line.starts_with(&format!("{what}: refused")), "{told:?}");
    }
    assert_eq!(told.printed.lines().count(), 5, "{told:?}");
    assert!(yard.far.requests.lock().is_empty(), "{:?}", yard.far.requests.lock());
}

#[tokio::test]
async fn a_secret_goes_where_it_is_bound_and_is_never_read() {
    // The plain secret, and as base64, as base64url, percent-encoded, as JSON: the far side repeats what it was sent, and more.
    let echo =
        "{request} s3cr3t-tok/en+1 czNjcjN0LXRvay9lbisx czNjcjN0LXRvay9lbisx s3cr3t-tok%2Fen%2B1 s3cr3t-tok%2fen%2b1";
    let yard = Yard::with(Bounds::default(), move |_| echo.to_owned());
    let told = yard.main(&yard.guest(&rust("secret")), Limits::default()).await;
    let lines: Vec<&str> = told.printed.lines().collect();
    for (what, line) in ["address", "body", "elsewhere", "port", "name"].iter().zip(&lines) {
        assert!(line.starts_with(&format!("{what}: refused")), "{told:?}");
    }
    let Told { printed, denials, .. } = &told;
    assert!(denials.iter().any(|why| why.contains("in an address")), "{told:?}");
    assert!(denials.iter().any(|why| why.contains("in a body")), "{told:?}");
    assert!(denials.iter().any(|why| why.contains("must not be sent to http://other.example")), "{told:?}");
    let requests = yard.far.requests.lock().clone();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(requests[0].contains("authorization: Bearer s3cr3t-tok/en+1\r\n"), "{requests:?}");
    assert!(printed.contains("Bearer ****"), "{told:?}");
    for secret in ["s3cr3t", "czNjcjN0", "tok/en", "tok%2Fen", "tok%2fen"] {
        assert!(!printed.contains(secret) && !denials.concat().contains(secret), "{secret}: {told:?}");
    }
    assert!(printed.ends_with("said: Bearer {{secret:token}}\n"), "{told:?}");
}
