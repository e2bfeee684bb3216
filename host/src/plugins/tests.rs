mod as_built;
mod versions;

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, net::TcpListener};

use super::*;
use crate::sandbox::egress::{Policy, SystemResolver};

fn client(private: &[&str]) -> egress::Client {
    let policy = Policy {
        allow: vec!["*".parse().unwrap()],
        allow_private: private.iter().map(|net| net.parse().unwrap()).collect(),
        deny: Vec::new(),
    };
    egress::Client::new(policy, Arc::new(SystemResolver::default()))
}

async fn plugins(folder: &std::path::Path, private: &[&str]) -> Plugins {
    // The cache is shared by all tests of this run, so that each plugin is compiled once.
    let cache = Cache::new(std::env::temp_dir().join("kaizen-test-compiled"), &[9; 32]);
    let folders = BTreeMap::from([("audit".to_owned(), folder.to_path_buf())]);
    Plugins::install(bundled().collect(), cache, client(private), folders).await.unwrap()
}

fn attempt() -> Attempt {
    Attempt { idempotency_key: "k1".into(), attempt: 1 }
}

fn binding(plugin: &str, config: Value, secrets: &[(&str, &str)]) -> Binding {
    Binding {
        organization_id: uuid::Uuid::from_u128(1).into(),
        connection_id: uuid::Uuid::from_u128(7),
        plugin: plugin.into(),
        wanted: Wanted::default(),
        config,
        secrets: secrets.iter().map(|(name, value)| ((*name).to_owned(), SecretString::from(*value))).collect(),
    }
}

fn events(count: i64) -> Vec<crate::domain::audit::Event> {
    let clock = Clock::fixed(chrono::DateTime::UNIX_EPOCH, 1);
    (1..=count)
        .map(|sequence| crate::domain::audit::Event {
            id: clock.id(),
            organization_id: clock.id(),
            sequence,
            occurred_at: clock.now(),
            actor: "user/1".into(),
            action: "agent.create".into(),
            target: "agent/{{secret:signing-key}}".into(),
            outcome: crate::domain::audit::Outcome::Success,
            details: "{}".into(),
            hash: "0".repeat(64),
        })
        .collect()
}

/// A far side that keeps the requests it gets, whole, and answers each with `answer(request)`.
async fn far_side(answer: fn(&str) -> String) -> (String, Arc<parking_lot::Mutex<Vec<String>>>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (requests, connections) = (Arc::new(parking_lot::Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let (kept, counted) = (requests.clone(), connections.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut request = Vec::new();
            let mut buffer = [0; 65536];
            loop {
                let read = stream.read(&mut buffer).await.unwrap_or_default();
                request.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&request);
                let length = text
                    .lines()
                    .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
                let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or_default();
                if read == 0 || text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.len() >= length) {
                    break;
                }
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let body = answer(&request);
            kept.lock().push(request);
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, requests, connections)
}

#[tokio::test]
async fn every_bundled_plugin_loads_and_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = plugins(folder.path(), &[]).await;
    assert_eq!(plugins.manifests().len(), bundled().count());
    for (kind, name) in [
        (Kind::IdentityProvider, "oidc"),
        (Kind::IdentityProvider, "entra"),
        (Kind::IdentityProvider, "okta"),
        (Kind::IdentityProvider, "github"),
        (Kind::DeploymentTarget, "nexus"),
        (Kind::DeploymentTarget, "kubernetes"),
        (Kind::DeploymentTarget, "webhook"),
        (Kind::AuditSink, "webhook"),
        (Kind::AuditSink, "splunk-hec"),
        (Kind::AuditSink, "syslog"),
        (Kind::AuditSink, "file"),
    ] {
        assert!(plugins.find(kind, name).is_ok(), "{name}");
    }
    let error = plugins.validate(Kind::AuditSink, "nexus", &json!({}), &BTreeMap::new()).await.unwrap_err();
    let Refused::Faults(error) = error else { panic!("{error:?}") };
    assert_eq!(error[0].pointer, "/plugin");
    assert!(error[0].message.contains("file, splunk-hec, syslog, webhook"), "{}", error[0].message);
}

#[tokio::test]
async fn a_sink_reaches_a_listed_private_address_and_no_other() {
    let (url, requests, connections) = far_side(|_| "{}".into()).await;
    let folder = tempfile::tempdir().unwrap();
    let sink = binding("webhook", json!({ "url": url }), &[("signing-key", "0123456789abcdef-key")]);

    let refused = plugins(folder.path(), &[]).await.deliver(&sink, &attempt(), &events(2)).await.unwrap_err();
    assert!(matches!(&refused, PluginError::Config(why) if why.contains("egress_allow_private")), "{refused:?}");
    assert!(!refused.retryable());
    assert_eq!(connections.load(Ordering::SeqCst), 0, "nothing may leave");

    let stored = plugins(folder.path(), &["127.0.0.1/32"]).await.deliver(&sink, &attempt(), &events(2)).await.unwrap();
    assert_eq!(stored, 2, "also where an event's text looks like a placeholder");
    let request = requests.lock()[0].clone();
    assert!(request.to_ascii_lowercase().contains("kaizen-signature: t="), "{request}");
    assert!(!request.contains("0123456789abcdef-key"), "the key signs and is never sent");
}

#[tokio::test]
async fn a_folder_belongs_to_one_connection() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = plugins(folder.path(), &[]).await;
    for id in [7u128, 8] {
        let sink = Binding { connection_id: uuid::Uuid::from_u128(id), ..binding("file", json!({}), &[]) };
        assert_eq!(plugins.deliver(&sink, &attempt(), &events(3)).await.unwrap(), 3);
        let own = folder.path().join(format!("{}/{}", sink.organization_id, sink.connection_id));
        let files: Vec<_> = std::fs::read_dir(&own).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!(std::fs::read_to_string(&files[0]).unwrap().lines().count(), 3);
    }
    let organization = binding("file", json!({}), &[]).organization_id;
    assert_eq!(std::fs::read_dir(folder.path().join(organization.to_string())).unwrap().count(), 2);
}

#[tokio::test]
async fn folders_are_offered_to_the_organizations_that_the_operator_names() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(std::env::temp_dir().join("kaizen-test-compiled"), &[9; 32]);
    let sandbox = Sandbox::new(cache, client(&[])).unwrap();
    let ours = binding("file", json!({}), &[]);
    let theirs = Binding { organization_id: uuid::Uuid::from_u128(2).into(), ..ours.clone() };
    let offered = BTreeMap::from([("audit".to_owned(), folder.path().to_path_buf())]);
    let file = || bundled().filter(|(_, name, _)| *name == "file").collect();
    let only_ours = (offered.clone(), BTreeSet::from([ours.organization_id]));
    let plugins = Plugins::assemble(sandbox.clone(), file(), only_ours, None).await.unwrap();
    assert_eq!(plugins.deliver(&ours, &attempt(), &events(1)).await.unwrap(), 1);
    let refused = plugins.deliver(&theirs, &attempt(), &events(1)).await.unwrap_err();
    assert!(
        matches!(&refused, PluginError::Config(why) if why.contains("the folder `audit` is not offered")),
        "{refused:?}"
    );
    assert!(!folder.path().join(theirs.organization_id.to_string()).exists());
    // Where none is named, everybody's are.
    let plugins = Plugins::assemble(sandbox, file(), (offered, BTreeSet::new()), None).await.unwrap();
    assert_eq!(plugins.deliver(&theirs, &attempt(), &events(1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_gateway_gets_its_key_and_an_echo_of_it_is_masked() {
    // A gateway that puts the whole request, and so the key, into everything it answers.
    let (url, requests, _) =
        far_side(|request| json!({ "id": "a1", "name": request, "error": request, "message": request }).to_string())
            .await;
    let folder = tempfile::tempdir().unwrap();
    let plugins = plugins(folder.path(), &["127.0.0.1/32"]).await;
    let secret = plugins.find(Kind::DeploymentTarget, "nexus").unwrap().manifest.slots[0].name.clone();
    let gateway = binding("nexus", json!({ "api_url": url }), &[(secret.as_str(), "s3cr3t-gateway-key")]);
    let release = Release {
        deployment_id: uuid::Uuid::from_u128(1),
        agent_id: uuid::Uuid::from_u128(2),
        agent_name: "A".into(),
        version: 1,
        environment: "production".into(),
        workflow: json!({ "format": "kaizen.workflow.v1", "settings": {}, "nodes": [], "edges": [] }).to_string(),
        digest: "0".repeat(64),
    };
    let (sender, mut progress) = tokio::sync::mpsc::channel(16);
    let deployed = plugins.deploy(&gateway, &attempt(), release, sender).await;
    assert!(
        requests.lock().iter().any(|request| request.contains("Bearer s3cr3t-gateway-key")),
        "{:?}",
        requests.lock()
    );
    assert!(!format!("{deployed:?}").contains("s3cr3t"), "{deployed:?}");
    assert!(progress.recv().await.is_some(), "progress is reported");
}

#[tokio::test]
async fn an_oidc_connection_says_where_to_go() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = plugins(folder.path(), &[]).await;
    let config = json!({ "issuer": "https://login.example.com", "client_id": "kaizen" });
    let secrets = BTreeMap::from([("client-secret".to_owned(), SecretString::from("x"))]);
    plugins.validate(Kind::IdentityProvider, "oidc", &config, &secrets).await.unwrap();
    let connection = binding("oidc", config, &[("client-secret", "x")]);
    let Protocol::Oidc { issuer, .. } = plugins.begin(&connection, &attempt()).await.unwrap() else { panic!("oidc") };
    assert_eq!(issuer, "https://login.example.com");
    let grant = IdentityGrant {
        claims: Some(json!({ "sub": "42", "email": "ada@example.com", "email_verified": true, "name": "Ada" })),
        userinfo: None,
    };
    let identity = plugins.identify(&connection, &attempt(), grant, None).await.unwrap();
    assert_eq!((identity.subject.as_str(), identity.email.as_deref()), ("42", Some("ada@example.com")));
    assert!(identity.email_verified);
}

#[tokio::test]
async fn secrets_of_a_row_open_for_that_row_only() {
    let (keys, clock) = (Secrets::new([3; 32]), Clock::system());
    let secrets = BTreeMap::from([("token".to_owned(), SecretString::from("hunter2"))]);
    let (organization, id): (OrganizationId, uuid::Uuid) = (clock.id(), clock.id());
    let sealed = seal(&keys, &clock, organization, id, &secrets).unwrap();
    let row = |organization_id, id| store::connections::Connection {
        id,
        organization_id,
        kind: Kind::AuditSink,
        name: "n".into(),
        plugin: "webhook".into(),
        plugin_version: None,
        plugin_line: Some("0.1".into()),
        config: sqlx::types::Json(json!({})),
        secrets: sealed.clone(),
        secret_names: sqlx::types::Json(vec![]),
        environment: None,
        labels: Default::default(),
        active: true,
        created_at: clock.now(),
        updated_at: clock.now(),
        revision: 1,
    };
    assert_eq!(bind(&keys, &row(organization, id)).unwrap().secrets["token"].expose_secret(), "hunter2");
    assert!(bind(&keys, &row(organization, clock.id())).is_err());
    assert!(bind(&keys, &row(clock.id(), id)).is_err());
}

#[tokio::test]
async fn a_change_that_takes_a_secret_elsewhere_needs_the_secret_again() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = plugins(folder.path(), &[]).await;
    let stored = |name: &str| BTreeMap::from([(name.to_owned(), SecretString::from("value-of-it"))]);
    let cases = [
        (Kind::DeploymentTarget, "nexus", "api-key", "api_url"),
        (Kind::DeploymentTarget, "kubernetes", "token", "api_url"),
        (Kind::AuditSink, "webhook", "signing-key", "url"),
        (Kind::AuditSink, "splunk-hec", "token", "url"),
        (Kind::IdentityProvider, "oidc", "client-secret", "issuer"),
    ];
    for (kind, plugin, secret, property) in cases {
        let config = |url: &str| json!({ property: url, "client_id": "c" });
        let (before, stored) = (config("https://a.example/x"), stored(secret));
        let faults = |after: &str, supplied: bool| {
            let any = Wanted::default();
            plugins.redirected(kind, plugin, (&before, &any), (&config(after), &any), &stored, |_| supplied)
        };
        assert!(faults("https://a.example/other", false).is_empty(), "{plugin}: same host");
        assert!(faults("https://evil.example/", true).is_empty(), "{plugin}: sent again");
        for elsewhere in ["https://evil.example/x", "http://a.example/x", "https://a.example:8443/x"] {
            let faults = faults(elsewhere, false);
            assert_eq!(
                faults.iter().map(|fault| fault.pointer.as_str()).collect::<Vec<_>>(),
                [format!("/secrets/{secret}")],
                "{plugin}: {elsewhere}"
            );
        }
    }
}

#[tokio::test]
async fn a_connection_that_keeps_failing_is_suspended_and_tried_again() {
    static AWAY: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(true);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 65536]).await;
            let status = if AWAY.load(Ordering::SeqCst) { "503 Service Unavailable" } else { "204 No Content" };
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
        }
    });
    let clock = Clock::fixed("2026-01-02T03:04:05Z".parse().unwrap(), 1);
    let bounds = sandbox::limits::Bounds { trip_failures: 2, ..Default::default() };
    let cache = Cache::new(std::env::temp_dir().join("kaizen-test-compiled"), &[9; 32]);
    let sandbox = Sandbox::within(bounds, cache, client(&["127.0.0.1/32"]), clock.clone()).unwrap();
    let plugins = Plugins::within(sandbox, bundled().collect(), BTreeMap::new()).await.unwrap();
    let sink = binding("webhook", json!({ "url": url }), &[("signing-key", "0123456789abcdef-key")]);
    let (attempt, events) = (attempt(), events(1));
    let deliver = || plugins.deliver(&sink, &attempt, &events);

    for _ in 0..2 {
        let error = deliver().await.unwrap_err();
        assert!(
            matches!(&error, PluginError::Unavailable { message, .. } if !message.contains("suspended")),
            "{error:?}"
        );
    }
    let so_far = asked.load(Ordering::SeqCst);
    let error = deliver().await.unwrap_err();
    let PluginError::Postponed { message, after } = &error else { panic!("{error:?}") };
    assert!(message.contains("suspended after failures in a row; the last: "), "{message}");
    assert_eq!(*after, std::time::Duration::from_secs(10));
    assert_eq!(asked.load(Ordering::SeqCst), so_far, "nobody is asked");
    let other = Binding { connection_id: uuid::Uuid::from_u128(8), ..sink.clone() };
    let error = plugins.deliver(&other, &attempt, &events).await.unwrap_err();
    assert!(!error.to_string().contains("suspended"), "another connection is not: {error}");
    let health = plugins.reports(Kind::AuditSink, "webhook", |_| true).remove(0);
    assert_eq!((health.standing.status, health.standing.suspended.len(), health.calls), (Status::Degraded, 1, Some(3)));
    let own = plugins.reports(Kind::AuditSink, "webhook", |id| id == other.connection_id).remove(0);
    assert_eq!((own.standing.status, own.standing.suspended.len(), own.last_errors.len()), (Status::Ok, 0, 1));

    // Who asks by hand is told so; and if it works, calls go on.
    let error = plugins.check(Kind::AuditSink, &sink, &attempt).await.unwrap_err();
    assert!(error.to_string().contains("calls are suspended until"), "{error}");
    AWAY.store(false, Ordering::SeqCst);
    let said = plugins.check(Kind::AuditSink, &sink, &attempt).await.unwrap();
    assert!(said.contains("Calls were suspended since 2026-01-02T03:04:05Z"), "{said}");
    assert_eq!(deliver().await, Ok(1));
    assert_eq!(plugins.reports(Kind::AuditSink, "webhook", |_| true).remove(0).standing.status, Status::Ok);
}
