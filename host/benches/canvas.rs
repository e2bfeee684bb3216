//! One canvas message committed to SQLite, beside a bare `INSERT` and `COMMIT` through sqlx on the same file; and 64
//! messages committed together, as a room does with what arrived while it was committing.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark")]

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kaizen::{
    canvas::{
        edits::Edits,
        journal::{Journal, Outcome, Submission},
    },
    clock::Clock,
    domain::{
        canvas::{Limits, Op},
        id::{AgentId, CanvasId, OrganizationId, UserId},
    },
    on,
    store::{self, Store},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{runtime::Runtime, sync::Mutex};
use uuid::Uuid;

struct Seeded {
    store: Store,
    clock: Clock,
    organization: OrganizationId,
    agent: AgentId,
    canvas: CanvasId,
    user: UserId,
    _folder: tempfile::TempDir,
}

async fn seed() -> Seeded {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("bench.db").display());
    let (store, clock) = (Store::connect(&url, &Default::default()).await.unwrap(), Clock::system());
    store.migrate().await.unwrap();
    let (organization, agent, canvas, user) = (clock.id(), clock.id(), clock.id(), clock.id());
    let workspace: Uuid = clock.id();
    let now = clock.now();
    let mut tx = store.begin().await.unwrap();
    let statements = [
        "INSERT INTO organizations (id, name, created_at, updated_at) VALUES ($1, 'o', $6, $6)",
        "INSERT INTO audit_heads (organization_id, sequence, hash) VALUES ($1, 0, '')",
        "INSERT INTO users (id, organization_id, email, name, active, platform_administrator, attributes, created_at, updated_at)
         VALUES ($2, $1, 'ada@example.com', 'Ada', TRUE, FALSE, '{}', $6, $6)",
        "INSERT INTO workspaces (id, organization_id, name, description, created_at, updated_at) VALUES ($3, $1, 'w', '', $6, $6)",
        "INSERT INTO agents (id, organization_id, workspace_id, name, description, labels, settings, canvas_id, created_by, created_at, updated_at)
         VALUES ($4, $1, $3, 'a', '', '{}', '{}', $5, $2, $6, $6)",
        "CREATE TABLE bare (id INTEGER PRIMARY KEY, ops TEXT NOT NULL)",
    ];
    for sql in statements {
        on!(&mut tx, |c| sqlx::query(sql)
            .bind::<OrganizationId>(organization)
            .bind::<UserId>(user)
            .bind(workspace)
            .bind::<AgentId>(agent)
            .bind::<CanvasId>(canvas)
            .bind(now)
            .execute(c)
            .await
            .map(drop))
        .unwrap();
    }
    tx.commit().await.unwrap();
    Seeded { store, clock, organization, agent, canvas, user, _folder: folder }
}

fn moved(user: UserId, node: u64, x: u64) -> Submission {
    let ops = json!([{ "op": "node.patch", "id": format!("n{node}"), "set": { "position": { "x": x, "y": 1.5 } } }]);
    let text = ops.to_string();
    let ops: Vec<Op> = serde_json::from_value(ops).unwrap();
    Submission {
        user,
        client: "n:tab".into(),
        reference: Some(format!("c{x}")),
        repeats: i64::MAX..=i64::MAX,
        ops,
        digest: Sha256::digest(&text).to_vec(),
        text,
    }
}

fn canvas(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let seeded = runtime.block_on(seed());
    let Seeded { store, clock, organization, agent, canvas, user, .. } = &seeded;
    let (journal, edits) = runtime.block_on(async {
        let mut journal = Journal::open(store, clock, *organization, *canvas, Duration::from_secs(20), Limits::CANVAS).await.unwrap();
        let mut edits = Edits::new(clock.clone(), *organization, *agent, *canvas);
        let node = |n| json!({ "op": "node.put", "node": { "id": format!("n{n}"), "type": "task", "position": { "x": 0, "y": 0 }, "data": { "label": "a node" } } });
        let ops = json!((0..200).map(node).collect::<Vec<_>>());
        let text = ops.to_string();
        let ops = serde_json::from_value(ops).unwrap();
        let first = Submission { user: *user, client: "n:tab".into(), reference: None, repeats: i64::MAX..=i64::MAX, ops, text, digest: Vec::new() };
        let stored = journal.commit(&[first], &mut edits).await.outcomes.unwrap();
        assert_eq!(stored, [Outcome::Stored(1)]);
        (Mutex::new(journal), Mutex::new(edits))
    });
    let mut x = 0;
    let mut next = move || {
        x += 1;
        moved(*user, x % 200, x)
    };
    let commit = async |batch: Vec<Submission>| {
        let (mut journal, mut edits) = (journal.lock().await, edits.lock().await);
        let outcomes = journal.commit(&batch, &mut edits).await.outcomes.expect("stored");
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Stored(_))));
        journal.compact(i64::MAX, false).await.expect("compacted");
    };

    let mut group = c.benchmark_group("canvas");
    group.bench_function("bare sqlx INSERT and COMMIT", |b| {
        let text = moved(*user, 0, 0).text;
        b.to_async(&runtime).iter(async || {
            let mut tx = store.begin().await.unwrap();
            let sql = "INSERT INTO bare (ops) VALUES ($1)";
            on!(&mut tx, |c| sqlx::query(sql).bind(&text).execute(c).await.map(drop)).unwrap();
            tx.commit().await.unwrap();
        });
    });
    group.bench_function("one message committed", |b| {
        b.to_async(&runtime).iter_batched(|| vec![next()], &commit, BatchSize::SmallInput);
    });
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 messages committed together", |b| {
        b.to_async(&runtime).iter_batched(|| (0..64).map(|_| next()).collect(), &commit, BatchSize::SmallInput);
    });
    group.finish();
    let (sequence, graph) = runtime.block_on(async {
        store::canvas::graph(&mut store.read().await.unwrap(), *organization, *canvas).await.unwrap()
    });
    assert_eq!(&graph, runtime.block_on(journal.lock()).graph(), "what is on disk at {sequence} is what is in memory");
}

criterion_group!(benches, canvas);
criterion_main!(benches);
