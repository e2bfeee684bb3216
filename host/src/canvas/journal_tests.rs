use serde_json::{Value, json};

use super::{
    edits::Edits,
    journal::{Journal, LOOK_BACK, Outcome, Submission},
    testing::{Fixture, put},
};
use crate::{
    domain::canvas::{Code, Graph, Limits},
    store::{self, StoreError},
};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

fn message(f: &Fixture, user: usize, reference: Option<&str>, ops: Value) -> Submission {
    Submission {
        user: f.users[user],
        client: "n:tab".into(),
        reference: reference.map(Into::into),
        repeats: 1..=i64::MAX,
        text: ops.to_string(),
        digest: ops.to_string().into_bytes(),
        ops: serde_json::from_value(ops).unwrap(),
    }
}

async fn open(f: &Fixture) -> (Journal, Edits) {
    let journal = Journal::open(&f.store, &f.clock, f.organization, f.canvas, PATIENCE, Limits::CANVAS).await.unwrap();
    (journal, Edits::new(f.clock.clone(), f.organization, f.agent, f.canvas))
}

async fn commit(journal: &mut Journal, edits: &mut Edits, batch: &[Submission]) -> Vec<Outcome> {
    journal.commit(batch, edits).await.outcomes.unwrap()
}

async fn stored(f: &Fixture) -> (i64, Graph) {
    store::canvas::graph(&mut f.store.read().await.unwrap(), f.organization, f.canvas).await.unwrap()
}

#[tokio::test]
async fn a_batch_is_judged_in_order_and_what_holds_up_is_stored() {
    let f = Fixture::new().await;
    assert_eq!(stored(&f).await, (0, Graph::default()));
    let (mut journal, mut edits) = open(&f).await;
    let batch = [
        message(&f, 0, Some("1"), put("a", 1)),
        message(&f, 1, Some("1"), json!([{ "op": "node.patch", "id": "nowhere", "set": {} }])),
        message(&f, 1, Some("2"), put("b", 2)),
        message(&f, 0, None, json!([{ "op": "edge.put", "edge": { "id": "e", "source": "a", "target": "b" } }])),
    ];
    let outcomes = commit(&mut journal, &mut edits, &batch).await;
    assert!(matches!(&outcomes[1], Outcome::Rejected(r) if r.code == Code::NotFound), "{outcomes:?}");
    assert_eq!(
        [&outcomes[0], &outcomes[2], &outcomes[3]],
        [&Outcome::Stored(1), &Outcome::Stored(2), &Outcome::Stored(3)]
    );
    let (sequence, graph) = stored(&f).await;
    assert_eq!(sequence, 3);
    assert_eq!(&graph, journal.graph());
    assert_eq!(graph.edges.len(), 1);
}

#[tokio::test]
async fn a_large_batch_is_stored_whole() {
    let f = Fixture::new().await;
    let (mut journal, mut edits) = open(&f).await;
    let batch: Vec<_> = (0..150).map(|n| message(&f, 0, None, put(&format!("n{n}"), n))).collect();
    let outcomes = commit(&mut journal, &mut edits, &batch).await;
    assert_eq!(outcomes, (1..=150).map(Outcome::Stored).collect::<Vec<_>>());
    assert_eq!(stored(&f).await, (150, journal.graph().clone()));
}

#[tokio::test]
async fn two_hosts_share_one_order() {
    let f = Fixture::new().await;
    let (mut here, mut edits) = open(&f).await;
    let (mut there, mut edits_there) = open(&f).await;
    commit(&mut here, &mut edits, &[message(&f, 0, Some("1"), put("a", 1))]).await;
    // Behind, and about a node that it does not know yet.
    let edge = json!([{ "op": "edge.put", "edge": { "id": "e", "source": "a", "target": "a" } }]);
    let committed = there.commit(&[message(&f, 1, Some("1"), edge)], &mut edits_there).await;
    assert_eq!(committed.outcomes.unwrap(), [Outcome::Stored(2)]);
    assert_eq!(committed.others.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [1]);
    // A refusal, too, is by the latest graph.
    let patch = json!([{ "op": "edge.patch", "id": "e", "set": { "source": "nowhere" } }]);
    let committed = here.commit(&[message(&f, 0, Some("2"), patch)], &mut edits).await;
    assert!(matches!(&committed.outcomes.unwrap()[..], [Outcome::Rejected(r)] if r.code == Code::MissingNode));
    assert_eq!(committed.others.len(), 1);
    assert_eq!(here.graph(), there.graph());
    assert_eq!(stored(&f).await, (2, here.graph().clone()));
}

#[tokio::test]
async fn many_writers_at_once_leave_no_gap_and_lose_nothing() {
    let f = Fixture::new().await;
    let work = (0..4).map(|host: usize| {
        let f = &f;
        async move {
            let (mut journal, mut edits) = open(f).await;
            let mut sequences = Vec::new();
            for n in 0..12 {
                let ops = put(&format!("h{host}n{n}"), n);
                for outcome in commit(&mut journal, &mut edits, &[message(f, host % 2, None, ops)]).await {
                    let Outcome::Stored(sequence) = outcome else { panic!("{outcome:?}") };
                    sequences.push(sequence);
                }
            }
            sequences
        }
    });
    let mut sequences: Vec<i64> = futures::future::join_all(work).await.into_iter().flatten().collect();
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=48).collect::<Vec<_>>());
    let (sequence, graph) = stored(&f).await;
    assert_eq!((sequence, graph.nodes.len()), (48, 48));
}

#[tokio::test]
async fn a_repeat_is_answered_and_not_applied() {
    let f = Fixture::new().await;
    let (mut journal, mut edits) = open(&f).await;
    let first = message(&f, 0, Some("c1"), put("a", 1));
    assert_eq!(commit(&mut journal, &mut edits, &[first]).await, [Outcome::Stored(1)]);
    commit(&mut journal, &mut edits, &[message(&f, 1, Some("c1"), put("a", 2))]).await;
    // On another host, which read it from the journal; within one batch; and on the host that stored it.
    let (mut other, mut other_edits) = open(&f).await;
    let again = || message(&f, 0, Some("c1"), put("a", 1));
    assert_eq!(
        commit(&mut other, &mut other_edits, &[again(), again()]).await,
        [Outcome::Repeated(1), Outcome::Repeated(1)]
    );
    assert_eq!(commit(&mut journal, &mut edits, &[again()]).await, [Outcome::Repeated(1)]);
    let twice = [message(&f, 0, Some("c2"), put("b", 1)), message(&f, 0, Some("c2"), put("b", 1))];
    assert_eq!(commit(&mut journal, &mut edits, &twice).await, [Outcome::Stored(3), Outcome::Repeated(3)]);
    assert_eq!(stored(&f).await.1.nodes.get("a").unwrap()["position"]["x"], 2, "the later write of another stays");
    // Outside the range in which the client may repeat, it is another message.
    let elsewhere = Submission { repeats: 2..=2, ..again() };
    assert_eq!(commit(&mut journal, &mut edits, &[elsewhere]).await, [Outcome::Stored(4)]);
}

#[tokio::test]
async fn snapshots_shorten_the_journal_and_change_nothing() {
    let f = Fixture::new().await;
    let (mut journal, mut edits) = open(&f).await;
    let rounds = LOOK_BACK / 64 + 12;
    for round in 0..rounds {
        let batch: Vec<_> =
            (0..64).map(|n| message(&f, 0, Some(&format!("{round}.{n}")), put(&format!("n{n}"), round))).collect();
        commit(&mut journal, &mut edits, &batch).await;
        journal.compact(i64::MAX, false).await.unwrap();
    }
    let last = rounds * 64;
    assert_eq!(stored(&f).await, (last, journal.graph().clone()));
    let mut conn = f.store.read().await.unwrap();
    let (snapshot, _) = store::canvas::snapshot(&mut conn, f.organization, f.canvas).await.unwrap().unwrap();
    assert!(snapshot > last - 1024 && snapshot <= last, "{snapshot}");
    let (kept, _) = store::canvas::tail_size(&mut conn, f.organization, f.canvas, 0).await.unwrap();
    assert!((LOOK_BACK..LOOK_BACK + 512).contains(&kept), "{kept} rows are kept");
    // A host that slept for longer than the journal goes back cannot follow it and must open it anew.
    let (mut again, mut again_edits) = open(&f).await;
    assert_eq!(again.graph(), journal.graph());
    let reference = format!("{}.3", rounds - 1);
    let repeat = message(&f, 0, Some(&reference), put("n3", rounds - 1));
    assert_eq!(commit(&mut again, &mut again_edits, &[repeat]).await, [Outcome::Repeated(last - 60)]);
    let other = message(&f, 0, Some(&reference), put("n3", 0));
    assert_eq!(commit(&mut again, &mut again_edits, &[other]).await, [Outcome::Reused(last - 60)]);
}

#[tokio::test]
async fn a_journal_keeps_so_many_bytes_and_what_it_takes_is_known() {
    const KEEP: i64 = 1024 * 1024;
    let f = Fixture::new().await;
    let (mut journal, mut edits) = open(&f).await;
    let (mut follower, mut edits_there) = open(&f).await;
    for n in 0..100 {
        let node = json!({ "id": "a", "position": { "x": n, "y": 0 }, "data": "x".repeat(60_000) });
        commit(&mut journal, &mut edits, &[message(&f, 0, None, json!([{ "op": "node.put", "node": node }]))]).await;
        journal.compact(KEEP, false).await.unwrap();
    }
    let mut conn = f.store.read().await.unwrap();
    let (kept, bytes) = store::canvas::tail_size(&mut conn, f.organization, f.canvas, 0).await.unwrap();
    // As much again may be stored before the next snapshot.
    assert!(kept >= KEEP / 60_100 && bytes <= 2 * KEEP + 61_000, "{kept} messages, {bytes} bytes");
    let (_, graph) = store::canvas::snapshot(&mut conn, f.organization, f.canvas).await.unwrap().unwrap();
    let all = store::canvas::bytes(&mut conn, f.organization).await.unwrap();
    assert_eq!(all, bytes + i64::try_from(graph.len()).unwrap());
    drop(conn);
    assert_eq!(stored(&f).await, (100, journal.graph().clone()));
    // Who is further behind than the journal goes back is told so.
    let late = follower.commit(&[message(&f, 1, None, put("b", 1))], &mut edits_there).await;
    assert!(matches!(late.outcomes, Err(StoreError::Stale)), "{late:?}");
}

#[tokio::test]
async fn edits_are_told_once_a_window_with_the_first_of_them() {
    let f = Fixture::new().await;
    let (mut journal, mut edits) = open(&f).await;
    commit(&mut journal, &mut edits, &[message(&f, 0, None, put("a", 1)), message(&f, 0, None, put("a", 2))]).await;
    commit(&mut journal, &mut edits, &[message(&f, 0, None, put("a", 3)), message(&f, 1, None, put("a", 4))]).await;
    let told = f.audited().await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0].0, "canvas.edit");
    assert_eq!(told[0].1, format!("user/{}", f.users[0]));
    assert_eq!(told[0].2["first_sequence"], 1);
    assert_eq!(told[1].2["first_sequence"], 4);
    // The first leaves; the second, who did no more than was told, too. What is not recorded stays.
    assert_eq!(edits.ended(|_| false).len(), 1);
    let ended = edits.ended(|_| false);
    let mut tx = f.store.begin().await.unwrap();
    edits.record_ends(&mut tx, &ended).await.unwrap();
    tx.commit().await.unwrap();
    edits.forget(&ended);
    let told = f.audited().await;
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(
        told[2].2,
        json!({ "canvas_id": f.canvas, "window": "closed", "first_sequence": 1, "last_sequence": 3, "messages": 3 })
    );
    assert!(edits.ended(|_| false).is_empty());
}

#[tokio::test]
async fn a_canvas_of_another_organization_is_not_there() {
    let f = Fixture::new().await;
    let stranger = f.clock.id();
    let mut journal = Journal::open(&f.store, &f.clock, stranger, f.canvas, PATIENCE, Limits::CANVAS).await.unwrap();
    let mut edits = Edits::new(f.clock.clone(), stranger, f.agent, f.canvas);
    let committed = journal.commit(&[message(&f, 0, None, put("a", 1))], &mut edits).await;
    assert!(matches!(committed.outcomes, Err(StoreError::Reference(_))), "{committed:?}");
    assert!(journal.graph().nodes.is_empty(), "what was not stored is taken back");
    assert!(
        store::canvas::watch(&mut f.store.read().await.unwrap(), stranger, f.canvas, "h", f.clock.now())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_ticket_lets_in_once_and_for_a_while() {
    let f = Fixture::new().await;
    let now = f.clock.now();
    let later = now + chrono::TimeDelta::seconds(30);
    let ticket = store::canvas::Ticket {
        organization_id: f.organization,
        canvas_id: f.canvas,
        user_id: f.users[0],
        session_id: None,
    };
    let mut tx = f.store.begin().await.unwrap();
    for hash in [b"one", b"two"] {
        store::canvas::issue_ticket(&mut tx, hash, &ticket, now, later).await.unwrap();
    }
    let redeem = store::canvas::redeem_ticket;
    assert_eq!(redeem(&mut tx, b"one", f.clock.id(), now).await.unwrap(), None, "for another canvas");
    assert_eq!(redeem(&mut tx, b"one", f.canvas, later).await.unwrap(), None, "too late");
    assert_eq!(redeem(&mut tx, b"one", f.canvas, now).await.unwrap(), Some(ticket));
    assert_eq!(redeem(&mut tx, b"one", f.canvas, now).await.unwrap(), None, "a second time");
    assert_eq!(redeem(&mut tx, b"two", f.canvas, now).await.unwrap(), Some(ticket));
    let foreign = store::canvas::Ticket { organization_id: f.clock.id(), ..ticket };
    let refused = store::canvas::issue_ticket(&mut tx, b"three", &foreign, now, later).await;
    assert!(matches!(refused, Err(StoreError::Reference(_))), "{refused:?}");
}

#[tokio::test]
async fn what_a_commit_without_an_answer_stored_is_not_stored_again() {
    let f = Fixture::new().await;
    let patience = std::time::Duration::from_secs(1);
    let mut here = Journal::open(&f.store, &f.clock, f.organization, f.canvas, patience, Limits::CANVAS).await.unwrap();
    let (mut there, mut edits) = open(&f).await;
    // Of a client without a name that resumed from nothing: otherwise never a repeat.
    let sent =
        || Submission { client: "d:1".into(), repeats: i64::MAX..=i64::MAX, ..message(&f, 0, Some("1"), put("a", 1)) };
    let writing = f.store.begin().await.unwrap();
    let given_up = here.commit(&[sent()], &mut edits).await.outcomes;
    assert!(matches!(given_up, Err(StoreError::Unavailable(_))), "{given_up:?}");
    assert_eq!(here.graph(), &Graph::default());
    drop(writing);
    // It arrives after all, as a commit of another host's would.
    assert_eq!(commit(&mut there, &mut edits, &[sent()]).await, [Outcome::Stored(1)]);
    assert_eq!(commit(&mut here, &mut edits, &[sent()]).await, [Outcome::Repeated(1)]);
    let other = || message(&f, 0, Some("2"), put("b", 1));
    assert_eq!(commit(&mut here, &mut edits, &[other()]).await, [Outcome::Stored(2)]);
    assert_eq!(commit(&mut here, &mut edits, &[sent()]).await, [Outcome::Repeated(1)], "after the next commit too");
    let again = Submission { client: "d:2".into(), repeats: i64::MAX..=i64::MAX, ..other() };
    let twice = [again, Submission { client: "d:2".into(), repeats: i64::MAX..=i64::MAX, ..other() }];
    assert_eq!(commit(&mut here, &mut edits, &twice).await, [Outcome::Stored(3), Outcome::Stored(4)]);
}
