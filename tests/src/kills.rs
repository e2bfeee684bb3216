//! `SIGKILL` at random instants under load: nothing acknowledged is missing or doubled, and the audit chain holds.
//!
//! A few kills in each run of the suite; `tests/drills/sigkill` sets `KZTEST_KILLS` for a long drill. A failure prints the seed
//! of its instants, which `KZTEST_SEED` repeats.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    canvas::put,
    harness::{Backend, Canvas, Client, Direct, PASSWORD, Setup, Tenant, World, agent, id},
};

on_both!(nothing_acknowledged_is_lost_or_doubled);

/// Nodes that the drill leaves on the canvas: older ones are removed again.
const NODES: usize = 50;
/// Access tokens live for minutes, a long drill for an hour.
const KILLS_BETWEEN_SIGN_INS: usize = 100;

/// A number that a drill's command sets.
pub fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |text| text.parse().ok().unwrap_or_else(|| panic!("{name} is not a number")))
}

/// Numbers that look random and are the same for the same seed (xorshift64*, Vigna 2016).
struct Instants(u64);

impl Instants {
    fn millis(&mut self, from: u64, to: u64) -> Duration {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        Duration::from_millis(from + (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % (to - from))
    }
}

/// Creates agents, each under a key of its own. What was not answered is asked again, under the same key.
struct Creator {
    name: &'static str,
    next: usize,
    created: Vec<(String, String)>,
}

impl Creator {
    async fn work(&mut self, owner: &Client, workspace: &str) {
        loop {
            let name = format!("{} {}", self.name, self.next);
            let key = format!("{}-{}", self.name, self.next);
            let body = agent(workspace, &name);
            match send(owner, Method::POST, "/api/v1/agents", body, &[("idempotency-key", &key)]).await {
                None => return,
                Some((201, made)) => self.created.push((name, id(&made))),
                Some((503, _)) => continue,
                Some((status, text)) => panic!("{name}: {status} {text}"),
            }
            self.next += 1;
        }
    }
}

/// Changes one agent again and again; what was sent last and not answered may or may not be there.
struct Patcher {
    agent: String,
    sent: usize,
    acknowledged: usize,
}

impl Patcher {
    async fn work(&mut self, owner: &Client) {
        loop {
            self.sent += 1;
            let body = json!({ "description": self.sent.to_string() });
            match send(owner, Method::PATCH, &format!("/api/v1/agents/{}", self.agent), body, &[]).await {
                None => return,
                Some((200, _)) => self.acknowledged = self.sent,
                Some((503, _)) => {}
                Some((status, text)) => panic!("patch {}: {status} {text}", self.sent),
            }
        }
    }

    async fn check(&self, owner: &Client) {
        let stored = owner.get(&format!("/api/v1/agents/{}", self.agent)).await.ok(200);
        let stored: usize = stored["description"].as_str().expect("text").parse().unwrap_or(0);
        assert!((self.acknowledged..=self.sent).contains(&stored), "{stored} of {}..{}", self.acknowledged, self.sent);
    }
}

/// Draws on a canvas, one message after the other, each under a `ref` of its own that is sent again until it is answered.
struct Painter {
    canvas: String,
    next: usize,
    sequence: i64,
}

impl Painter {
    async fn work(&mut self, owner: &Client) {
        let Ok(mut canvas) = Canvas::open(owner, &self.canvas, "?client=drill").await else { return };
        if canvas.next().await.is_err() {
            return;
        }
        loop {
            let mut ops = vec![put(&format!("n{}", self.next), 1)];
            if let Some(old) = self.next.checked_sub(NODES) {
                ops.push(json!({ "op": "node.remove", "id": format!("n{old}") }));
            }
            let reference = format!("r{}", self.next);
            let frame = json!({ "type": "ops", "ref": reference, "ops": ops });
            canvas.send_text(frame.to_string()).await;
            let answer = loop {
                match canvas.next_frame().await {
                    Ok(frame) if frame["ref"] == reference.as_str() => break frame,
                    Ok(_) => {}
                    Err(_) => return,
                }
            };
            match answer["type"].as_str() {
                Some("ack") => self.sequence = answer["seq"].as_i64().expect("seq"),
                _ if answer["code"] == "unavailable" => continue,
                _ => panic!("{answer}"),
            }
            self.next += 1;
        }
    }

    /// Each message has one sequence: a lost one would leave a gap behind, a doubled one would have two.
    async fn check(&self, owner: &Client) {
        let canvas = Canvas::join(owner, &self.canvas).await;
        let stored = usize::try_from(canvas.seq).expect("a sequence");
        let told = usize::try_from(self.sequence).expect("a sequence");
        assert_eq!(told, self.next, "the sequence of the last acknowledgement against messages acknowledged");
        assert!(stored == self.next || stored == self.next + 1, "{stored} stored, {} acknowledged", self.next);
        for number in (stored.saturating_sub(NODES)..stored).map(|number| format!("n{number}")) {
            assert!(canvas.nodes.contains_key(&number), "{number} is missing");
        }
        assert_eq!(canvas.nodes.len(), NODES.min(stored), "nodes that were removed");
    }
}

/// Sends a request; nothing where the server died before its answer was complete.
async fn send(
    client: &Client,
    method: Method,
    path: &str,
    body: Value,
    headers: &[(&str, &str)],
) -> Option<(u16, Value)> {
    let mut request = client.http.request(method, format!("{}{path}", client.base)).json(&body);
    request = request.bearer_auth(client.token.as_deref().unwrap_or_default());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.ok()?;
    let status = answer.status().as_u16();
    Some((status, answer.json().await.ok()?))
}

async fn nothing_acknowledged_is_lost_or_doubled(backend: Backend) {
    let kills: usize = setting("KZTEST_KILLS", 3);
    let seed: u64 = setting("KZTEST_SEED", 0x9E37_79B9_7F4A_7C15);
    eprintln!("{kills} kills, KZTEST_SEED={seed}");
    let mut instants = Instants(seed);
    let mut world = World::with(Setup::new(backend).await).await;
    let mut tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let made = tenant.agent(&workspace, "drawn").await;
    let mut creators = ["first", "second"].map(|name| Creator { name, next: 0, created: Vec::new() });
    let mut patcher = Patcher { agent: id(&made), sent: 0, acknowledged: 0 };
    let canvas = made["canvas_id"].as_str().expect("an id").to_owned();
    let mut painter = Painter { canvas, next: 0, sequence: 0 };

    for kill in 1..=kills {
        let owner = tenant.owner.client.clone();
        let [one, two] = &mut creators;
        let load = async {
            tokio::join!(
                one.work(&owner, &workspace),
                two.work(&owner, &workspace),
                patcher.work(&owner),
                painter.work(&owner)
            )
        };
        let killing = async {
            tokio::time::sleep(instants.millis(20, 1000)).await;
            world.server.kill().await;
        };
        tokio::join!(load, killing);
        world.again().await;
        tenant.owner.client = tenant.owner.at(&world.server.url);
        if kill % KILLS_BETWEEN_SIGN_INS == 0 {
            tenant.owner.client = world.client().login(&tenant.owner.email, PASSWORD).await;
        }
        patcher.check(&tenant.owner).await;
        painter.check(&tenant.owner).await;
        if kill % 50 == 0 {
            let created: usize = creators.iter().map(|creator| creator.created.len()).sum();
            eprintln!("{kill} kills: {created} agents, {} changes, {} messages", patcher.acknowledged, painter.next);
            nothing_of(&creators, &world, &tenant).await;
        }
    }
    nothing_of(&creators, &world, &tenant).await;
    let created: usize = creators.iter().map(|creator| creator.created.len()).sum();
    assert!(created > kills && patcher.acknowledged > kills && painter.next > kills, "there was a load");
    eprintln!(
        "{backend:?}, {kills} kills: {created} agents, {} changes and {} canvas messages acknowledged, none missing, none doubled",
        patcher.acknowledged, painter.next
    );
}

/// Nothing of what was created is missing, doubled, or without its audit event; the chain is whole.
async fn nothing_of(creators: &[Creator; 2], world: &World, tenant: &Tenant) {
    let mut direct: Direct = world.setup.database.direct().await;
    let stored = direct.names("SELECT name FROM agents WHERE name <> 'drawn'").await;
    let mut names: Vec<&String> = stored.iter().collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), stored.len(), "agents doubled");
    let created = creators.iter().flat_map(|creator| &creator.created);
    for (name, _) in created.clone() {
        assert!(names.binary_search(&name).is_ok(), "{name} was acknowledged and is missing");
    }
    // Each creator has one request at most that was stored and not answered.
    assert!(stored.len() <= created.count() + creators.len(), "{} agents", stored.len());
    let events = direct.number("SELECT count(*) FROM audit_events WHERE action = 'agent.create'").await;
    assert_eq!(usize::try_from(events).expect("a count"), stored.len() + 1, "audit events of agents");
    let verified = world.setup.run(&["audit", "verify"], "").await;
    assert!(verified.status.success(), "{}: {}{}", tenant.id, verified.stdout, verified.stderr);
}
