//! The four attacks that were once felt by everybody, tried again: `tests/drills/attacks`.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

use super::{Answers, heading, request, seconds};
use crate::{
    connections::{connect, most_sockets, one_of_many},
    harness::{Backend, Client, Gateway, Setup, World, eventually, id},
    policies::{EVERYTHING, activate, costly, create},
};

/// Of somebody else, while nobody attacks.
const READS: usize = 200;
/// Requests at a time of whoever attacks.
const AT_A_TIME: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute; tests/drills/attacks runs it"]
async fn the_four_attacks() {
    heading();
    denied_deploys().await;
    costly_policies().await;
    silent_sockets().await;
    everything_is_permitted().await;
}

/// A server as it is by default, on PostgreSQL.
async fn world() -> World {
    World::with(Setup::new(Backend::Postgres).await.without("KAIZEN_DATABASE_CONNECTIONS")).await
}

/// Reads one after the other: so many, and until an attack is over.
async fn reads_during<T>(reader: &Client, least: usize, attack: impl Future<Output = T>) -> (Answers, T) {
    let over = AtomicBool::new(false);
    let attacking = async {
        let result = attack.await;
        over.store(true, Ordering::Relaxed);
        result
    };
    let reading = async {
        let mut answers = Answers::default();
        while answers.0.len() < least || !over.load(Ordering::Relaxed) {
            answers.ask(request(reader, Method::GET, "/api/v1/agents")).await;
        }
        answers
    };
    tokio::join!(reading, attacking)
}

/// Posts the same again and again until then.
async fn post_until(client: &Client, path: &str, body: &serde_json::Value, end: Instant) -> Answers {
    let mut answers = Answers::default();
    while Instant::now() < end {
        answers.ask(request(client, Method::POST, path).json(body)).await;
    }
    answers
}

async fn denied_deploys() {
    let world = world().await;
    let (tenant, other) = (world.tenant("acme").await, world.tenant("globex").await);
    let workspace = tenant.workspace("first").await;
    let agent = id(&tenant.agent(&workspace, "helper").await);
    let gateway = Gateway::start().await;
    let body = json!({ "gateway_id": tenant.gateway(&gateway, "gateway").await });
    let viewer = tenant.person("vera", "viewer").await;
    let path = format!("/api/v1/agents/{agent}/deploy");
    let (before, ()) = reads_during(&other.owner, READS, std::future::ready(())).await;
    before.print("another's read", "before");
    let end = Instant::now() + seconds("KZTEST_ATTACK_SECONDS", 15);
    let attack = join_all((0..AT_A_TIME).map(|_| post_until(&viewer, &path, &body, end)));
    let (during, attack) = reads_during(&other.owner, 1, attack).await;
    during.print("another's read", "during");
    Answers::of_all(attack).print(&format!("{AT_A_TIME} denied deploys at a time"), "");
}

async fn costly_policies() {
    let world = world().await;
    let (tenant, other) = (world.tenant("acme").await, world.tenant("globex").await);
    let set = create(&tenant.owner, EVERYTHING).await;
    let path = format!("/api/v1/policies/{set}/versions");
    let (before, ()) = reads_during(&other.owner, READS, std::future::ready(())).await;
    before.print("another's read", "before");
    // The last one is within the bounds.
    for (ifs, elements) in [(10, 20_000), (10, 60_000), (10, 110_000), (2, 1_900)] {
        let body = json!({ "text": costly(ifs, elements) });
        let end = Instant::now() + seconds("KZTEST_ATTACK_SECONDS", 15) / 5;
        let (during, attack) = reads_during(&other.owner, 1, post_until(&tenant.owner, &path, &body, end)).await;
        during.print("another's read", "during");
        attack.print(&format!("{ifs} `if`, {elements} numbers"), "");
    }
}

/// Connects and asks as somebody new; notes how long each took.
async fn newcomer(url: &str, connected: &mut Answers, answered: &mut Answers) {
    let begun = Instant::now();
    let connecting = timeout(Duration::from_secs(10), connect(url, Ipv4Addr::new(127, 0, 0, 9))).await;
    let Ok(Ok(mut stream)) = connecting else { return connected.note("none", begun) };
    connected.note("connected", begun);
    let asking = async {
        stream.write_all(b"GET /api/v1/auth/me HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.split_whitespace().nth(1).map(str::to_owned)
    };
    let answer = timeout(Duration::from_secs(30), asking).await.ok().flatten();
    answered.note(answer.unwrap_or_else(|| "none".to_owned()), begun);
}

async fn silent_sockets() {
    let many = most_sockets();
    let world = world().await;
    let (mut connected, mut answered) = (Answers::default(), Answers::default());
    for _ in 0..READS {
        newcomer(&world.server.url, &mut connected, &mut answered).await;
    }
    connected.print("a newcomer's connection", "before");
    answered.print("with its answer", "before");
    // Whoever is closed connects again at once.
    let open = Arc::new(AtomicUsize::new(0));
    let silent = (0..many).map(|number| {
        let (url, open) = (world.server.url.clone(), open.clone());
        tokio::spawn(async move {
            loop {
                if let Ok(mut stream) = connect(&url, one_of_many(number)).await {
                    open.fetch_add(1, Ordering::Relaxed);
                    stream.read_to_end(&mut Vec::new()).await.ok();
                    open.fetch_sub(1, Ordering::Relaxed);
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
    });
    let silent: Vec<_> = silent.collect();
    eventually("nearly all are connected", || async { (open.load(Ordering::Relaxed) * 10 >= many * 9).then_some(()) })
        .await;
    let (mut connected, mut answered) = (Answers::default(), Answers::default());
    let end = Instant::now() + seconds("KZTEST_ATTACK_SECONDS", 15);
    let (mut least, mut most) = (many, 0);
    while Instant::now() < end {
        newcomer(&world.server.url, &mut connected, &mut answered).await;
        let now = open.load(Ordering::Relaxed);
        (least, most) = (least.min(now), most.max(now));
        sleep(Duration::from_millis(20)).await;
    }
    connected.print("a newcomer's connection", "during");
    answered.print("with its answer", "during");
    eprintln!("{many} silent sockets, {least} to {most} of them open at a time");
    silent.iter().for_each(tokio::task::JoinHandle::abort);
}

async fn everything_is_permitted() {
    let world = world().await;
    let tenant = world.tenant("acme").await;
    let admin = tenant.person("ada", "admin").await;
    let organization = format!("/api/v1/organizations/{}", tenant.id);
    let deleting = async || {
        let mut answers = Answers::default();
        answers.ask(request(&admin, Method::DELETE, &organization)).await;
        answers
    };
    let before = deleting().await;
    let set = create(&admin, EVERYTHING).await;
    activate(&admin, &set, &json!(1)).await;
    before.print("DELETE /organizations/{id}", "before");
    let permitted = deleting().await;
    permitted.print("", "permitted");
    assert_eq!(permitted.counts(), "403 x 1");
    tenant.owner.get(&organization).await.ok(200);
}
