//! What clients see while PostgreSQL is stopped (`SIGSTOP`) under load: `tests/drills/stalled-database`.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use reqwest::Method;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::{Answers, heading, pace, request, seconds};
use crate::{
    canvas::put,
    harness::{Canvas, Client, Cluster, Setup, Tenant, World, agent},
};

/// Of each organization.
const READERS: usize = 4;
const WRITERS: usize = 2;
/// Between two requests of one of them, and two messages of a canvas, milliseconds.
const PACE: u64 = 20;
const CANVAS_PACE: u64 = 100;
/// Nodes that a canvas has at the most.
const NODES: usize = 50;

/// Whether the load is to end.
type Over = Arc<AtomicBool>;

fn is(over: &Over) -> bool {
    over.load(Ordering::Relaxed)
}

/// Asks for the same again and again.
async fn read(client: Client, path: String, over: Over) -> Answers {
    let (mut answers, mut pace) = (Answers::default(), pace(PACE));
    while !is(&over) {
        pace.tick().await;
        answers.ask(request(&client, Method::GET, &path)).await;
    }
    answers
}

/// Creates agents, each under a key of its own, asked for until it is answered with 201; returns the names that were.
async fn write(client: Client, workspace: String, writer: String, over: Over) -> (Answers, BTreeSet<String>) {
    let (mut answers, mut created, mut pace) = (Answers::default(), BTreeSet::new(), pace(PACE));
    while !is(&over) {
        pace.tick().await;
        let name = format!("{writer} {}", created.len());
        let asked = request(&client, Method::POST, "/api/v1/agents").json(&agent(&workspace, &name));
        if answers.ask(asked.header("idempotency-key", name.replace(' ', "-"))).await == Some(201) {
            created.insert(name);
        }
    }
    (answers, created)
}

/// Draws, each message under a `ref` of its own that is sent until it is acknowledged; returns how many were.
async fn draw(client: Client, canvas: String, over: Over) -> (Answers, usize) {
    let (mut answers, mut acknowledged, mut pace) = (Answers::default(), 0, pace(CANVAS_PACE));
    while !is(&over) {
        pace.tick().await;
        let asked = Instant::now();
        let Ok(mut socket) = Canvas::open(&client, &canvas, "?client=drill").await else {
            answers.note("not opened", asked);
            continue;
        };
        if let Err(code) = socket.next().await {
            answers.note(format!("closed {code}"), asked);
            continue;
        }
        draw_over(&mut socket, &mut answers, &mut acknowledged, &over).await;
    }
    (answers, acknowledged)
}

/// Until the socket is closed, or the load ends.
async fn draw_over(socket: &mut Canvas, answers: &mut Answers, acknowledged: &mut usize, over: &Over) {
    let mut pace = pace(CANVAS_PACE);
    while !is(over) {
        pace.tick().await;
        let (asked, reference) = (Instant::now(), format!("r{acknowledged}"));
        let ops = [put(&format!("n{}", *acknowledged % NODES), i64::try_from(*acknowledged).expect("a number"))];
        socket.send_text(json!({ "type": "ops", "ref": reference, "ops": ops }).to_string()).await;
        let answer = loop {
            match socket.next_frame().await {
                Ok(frame) if frame["ref"] == reference.as_str() => break frame,
                Ok(_) => {}
                Err(code) => return answers.note(format!("closed {code}"), asked),
            }
        };
        match answer["code"].as_str() {
            None => {
                answers.note("ack", asked);
                *acknowledged += 1;
            }
            Some(code) => answers.note(code, asked),
        }
    }
}

/// Looks on; returns what it was told of the database, and the socket, which has every message in its order.
async fn watch(client: Client, canvas: String, over: Over) -> (Vec<(bool, Instant)>, Canvas) {
    let (mut told, mut socket) = (Vec::new(), Canvas::join(&client, &canvas).await);
    while !is(&over) {
        match timeout(Duration::from_millis(100), socket.next()).await {
            Ok(Ok(frame)) if frame["type"] == "status" => told.push((frame["writable"] == true, Instant::now())),
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(code)) => panic!("a socket was closed with {code}"),
        }
    }
    (told, socket)
}

/// What one organization's people do.
struct Load {
    tenant: Tenant,
    workspace: String,
    agent: String,
    canvas: String,
}

/// What they saw.
struct Seen {
    reads: Vec<Answers>,
    changes: Vec<Answers>,
    messages: Answers,
    told: Vec<(bool, Instant)>,
}

impl Load {
    async fn new(world: &World, name: &str) -> Self {
        let tenant = world.tenant(name).await;
        let workspace = tenant.workspace("first").await;
        let drawn = tenant.agent(&workspace, "drawn").await;
        let text = |name: &str| drawn[name].as_str().expect("an id").to_owned();
        Self { agent: text("id"), canvas: text("canvas_id"), tenant, workspace }
    }

    /// Until it is over; then checks that nothing acknowledged is missing or doubled.
    async fn run(&self, over: Over) -> Seen {
        let client = || self.tenant.owner.client.clone();
        let path = format!("/api/v1/agents/{}", self.agent);
        let reading = (0..READERS).map(|_| tokio::spawn(read(client(), path.clone(), over.clone())));
        let reading: Vec<_> = reading.collect();
        let writer = |number: usize| write(client(), self.workspace.clone(), format!("writer{number}"), over.clone());
        let writing: Vec<_> = (0..WRITERS).map(|number| tokio::spawn(writer(number))).collect();
        let drawing = tokio::spawn(draw(client(), self.canvas.clone(), over.clone()));
        let watching = tokio::spawn(watch(client(), self.canvas.clone(), over));
        let reads = join_all(reading).await.into_iter().map(|reads| reads.expect("a reader")).collect();
        let written = join_all(writing).await.into_iter().map(|written| written.expect("a writer"));
        let (changes, created): (Vec<_>, Vec<_>) = written.unzip();
        let (messages, acknowledged) = drawing.await.expect("a painter");
        let (told, watcher) = watching.await.expect("a watcher");
        self.check_agents(&created.into_iter().flatten().collect()).await;
        self.check_canvas(acknowledged, watcher).await;
        Seen { reads, changes, messages, told }
    }

    async fn check_agents(&self, created: &BTreeSet<String>) {
        let stored = self.tenant.owner.all("/api/v1/agents?limit=200").await;
        let names: BTreeSet<String> =
            stored.iter().map(|agent| agent["name"].as_str().expect("text").to_owned()).collect();
        assert_eq!(names.len(), stored.len(), "agents doubled");
        let missing: Vec<_> = created.difference(&names).collect();
        assert!(missing.is_empty(), "acknowledged and missing: {missing:?}");
        // The one that is drawn on, and of each writer one at the most that was stored and not answered.
        assert!(stored.len() <= created.len() + 1 + WRITERS, "{} agents, {} acknowledged", stored.len(), created.len());
    }

    async fn check_canvas(&self, acknowledged: usize, mut watcher: Canvas) {
        let canvas = Canvas::join(&self.tenant.owner, &self.canvas).await;
        let stored = usize::try_from(canvas.seq).expect("a sequence");
        assert!(stored == acknowledged || stored == acknowledged + 1, "{stored} stored, {acknowledged} acknowledged");
        watcher.reach(canvas.seq).await;
        assert_eq!(watcher.nodes, canvas.nodes, "who looked on has the same");
    }
}

/// Whether the server says that it is alive, and ready.
async fn health(ops: Client, over: Over) -> (Answers, Answers) {
    let (mut alive, mut ready, mut pace) = (Answers::default(), Answers::default(), pace(PACE));
    while !is(&over) {
        pace.tick().await;
        alive.ask(request(&ops, Method::GET, "/healthz")).await;
        ready.ask(request(&ops, Method::GET, "/readyz")).await;
    }
    (alive, ready)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute; tests/drills/stalled-database runs it"]
async fn clients_of_a_database_that_is_stopped() {
    let (around, long) = (seconds("KZTEST_AROUND_SECONDS", 10), seconds("KZTEST_STALL_SECONDS", 20));
    let cluster = Cluster::start().await;
    let world = World::with(Setup::on(&cluster).without("KAIZEN_DATABASE_CONNECTIONS")).await;
    let mut loads = Vec::new();
    for name in ["acme", "globex", "initech"] {
        loads.push(Load::new(&world, name).await);
    }
    let over = Over::default();
    let watching = tokio::spawn(health(Client::new(&world.server.ops), over.clone()));
    let stalling = async {
        sleep(around).await;
        let stopped = Instant::now();
        cluster.pause();
        sleep(long).await;
        cluster.resume();
        let resumed = Instant::now();
        sleep(around).await;
        over.store(true, Ordering::Relaxed);
        (stopped, resumed)
    };
    let (seen, (stopped, resumed)) = tokio::join!(join_all(loads.iter().map(|load| load.run(over.clone()))), stalling);
    let (alive, ready) = watching.await.expect("health");

    let reads: Vec<_> = seen.iter().flat_map(|seen| seen.reads.clone()).collect();
    let changes: Vec<_> = seen.iter().flat_map(|seen| seen.changes.clone()).collect();
    let messages: Vec<_> = seen.iter().map(|seen| seen.messages.clone()).collect();
    eprintln!(
        "{} organizations, each with {READERS} readers, {WRITERS} writers and 2 canvas sockets; PostgreSQL stopped for {long:?}",
        seen.len()
    );
    heading();
    let (alive, ready) = ([alive], [ready]);
    let rows: [(&str, &str, &[Answers]); 5] = [
        ("GET /agents/{id}", "200", &reads),
        ("POST /agents", "201", &changes),
        ("canvas message", "ack", &messages),
        ("GET /readyz", "200", &ready),
        ("GET /healthz", "200", &alive),
    ];
    for (name, _, clients) in rows {
        let all = Answers::of_all(clients.iter().cloned());
        all.only(|sample| sample.came < stopped).print(name, "before");
        all.only(|sample| sample.came >= stopped && sample.asked < resumed).print("", "stopped");
        all.only(|sample| sample.asked >= resumed).print("", "after");
    }
    eprintln!("First good answer after SIGCONT, of the first and of the last client:");
    for (name, good, clients) in rows {
        let firsts: Option<Vec<_>> = clients.iter().map(|answers| answers.first(good, resumed)).collect();
        let firsts = firsts.unwrap_or_else(|| panic!("{name}: a client had no good answer again"));
        eprintln!("  {name:<26} {:?}, {:?}", firsts.iter().min().expect("one"), firsts.iter().max().expect("one"));
    }
    for (writable, from) in [(false, stopped), (true, resumed)] {
        let told = seen.iter().map(|seen| {
            let told = seen.told.iter().find(|(said, at)| *said == writable && *at >= from);
            told.unwrap_or_else(|| panic!("a canvas was not told `writable: {writable}`")).1 - from
        });
        let told: Vec<_> = told.collect();
        eprintln!(
            "  {:<26} {:?} to {:?}",
            format!("`writable: {writable}` told"),
            told.iter().min().expect("one"),
            told.iter().max().expect("one")
        );
    }
    let verified = world.setup.run(&["audit", "verify"], "").await;
    assert!(verified.status.success(), "{}{}", verified.stdout, verified.stderr);
    eprintln!("Nothing acknowledged is missing or doubled; the audit chain is whole.");
}
