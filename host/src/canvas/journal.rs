//! The journal: one canvas in memory, and the only way to change it.
//!
//! The order is the database's. [`Journal::commit`] applies a batch of messages to the graph, then moves the canvas's
//! sequence on from the one this host knows, in the transaction that stores them; if another host was quicker, that moves
//! nothing, the batch is taken back, the other host's messages are read and applied, and the batch is tried again, now
//! with the canvas locked. So every message is judged against exactly the graph it is stored after, and many messages
//! share one transaction: with a disk that takes a millisecond to be sure, that is what the throughput hangs on.
//!
//! **Repeats.** A client that lost its connection before an answer sends the message again under the same `ref`. Each row
//! of the journal keeps whose `ref` it is, and a repeat within the last [`LOOK_BACK`] sequences is answered with the
//! sequence it has, not applied. Whose it is: a client that gives itself a name (`?client=`, unique among the user's
//! tabs) can repeat anything under that name, and must use each `ref` once: other operations under it are refused. For a
//! client without a name a repeat is the same `ref` with the same operations, stored after what the client resumed from
//! (`?since=`) and before it joined, or by a commit whose answer never came.
//!
//! **Unknown results.** A commit that the database does not answer in time is taken back here, and may still have been
//! made. The sequence then is not what this host believes, so the next commit reads what is there first.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::{edits::Edits, patience};
use crate::{
    clock::Clock,
    domain::{
        canvas::{Graph, Limits, Op, Rejection, Undo},
        id::{CanvasId, OrganizationId, UserId},
    },
    store::{
        Connection, Store, StoreError,
        canvas::{self, Entry, Loaded, Referred},
    },
};

/// Messages within which a repeat is recognized and from which a client may resume.
pub const LOOK_BACK: i64 = 1024;
/// A snapshot is made after so many messages…
const SNAPSHOT_MESSAGES: i64 = 512;
/// …or so many bytes, whichever comes first: what has to be read to open a canvas.
const SNAPSHOT_BYTES: usize = 1024 * 1024;
/// Messages of other hosts that are read at once.
const STEP: i64 = 256;

/// A message to be stored.
#[derive(Debug)]
pub struct Submission {
    /// Who sends it.
    pub user: UserId,
    /// Whose `reference` it is; without control characters.
    pub client: String,
    /// What the client calls it; without control characters.
    pub reference: Option<String>,
    /// Only what was stored in this range is taken for the same message.
    pub repeats: std::ops::RangeInclusive<i64>,
    /// The operations.
    pub ops: Vec<Op>,
    /// The operations as JSON.
    pub text: String,
    /// Of `text`: what is sent again under the same `reference` has the same.
    pub digest: Vec<u8>,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is on disk.
    Stored(i64),
    /// It was stored before.
    Repeated(i64),
    /// Another message was stored under the same `reference`.
    Reused(i64),
    /// Nothing of it was applied.
    Rejected(Rejection),
}

/// What became of a batch.
#[derive(Debug)]
pub struct Committed {
    /// What other hosts had stored before it, new here, whatever became of the batch itself.
    pub others: Vec<Entry>,
    /// For each message what became of it; or why none was stored. [`StoreError::Reference`]: the canvas is gone.
    pub outcomes: Result<Vec<Outcome>, StoreError>,
    /// By sequence, the operations as they were stored, where that is more than was sent.
    pub in_full: HashMap<i64, String>,
    /// Whether an audit event was recorded too.
    pub audited: bool,
}

/// One canvas as this host knows it.
pub struct Journal {
    store: Store,
    clock: Clock,
    organization: OrganizationId,
    canvas: CanvasId,
    sequence: i64,
    graph: Graph,
    references: References,
    snapshot: i64,
    /// Bytes since a snapshot was last tried, and since one was made.
    tail_bytes: usize,
    loose_bytes: usize,
    /// How long a commit may take.
    patience: Duration,
    /// What messages may make of the graph.
    limits: Limits,
    /// Where messages may have been stored by a commit whose result is unknown; without an end until the next commit.
    doubtful: Option<(i64, Option<i64>)>,
}

/// A batch applied to the graph, not yet stored.
#[derive(Default)]
struct Plan {
    outcomes: Vec<Outcome>,
    entries: Vec<Entry>,
    stored: Vec<(UserId, i64)>,
    in_full: HashMap<i64, String>,
    undo: Vec<Undo>,
}

impl Journal {
    /// Reads the canvas as it is now. Each commit may later take as long as `patience`, and keeps to `limits`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn open(
        store: &Store,
        clock: &Clock,
        organization: OrganizationId,
        canvas: CanvasId,
        patience: Duration,
        limits: Limits,
    ) -> Result<Self, StoreError> {
        let rows = canvas::rows(&mut store.read().await?, organization, canvas).await?;
        let Loaded { sequence, graph, snapshot, tail_bytes } = rows.load_aside((), Ok).await?;
        let mut conn = store.read().await?;
        let mut references = References::default();
        for known in canvas::references(&mut conn, organization, canvas, sequence - LOOK_BACK).await? {
            if known.sequence <= sequence {
                references.insert(known);
            }
        }
        let (store, clock, doubtful) = (store.clone(), clock.clone(), None);
        Ok(Self {
            store,
            clock,
            organization,
            canvas,
            sequence,
            graph,
            references,
            snapshot,
            tail_bytes,
            loose_bytes: tail_bytes,
            patience,
            limits,
            doubtful,
        })
    }

    /// The last sequence known here.
    pub fn sequence(&self) -> i64 {
        self.sequence
    }

    /// Bytes of messages that no snapshot covers yet, and that the database must keep therefore.
    pub fn loose_bytes(&self) -> usize {
        self.loose_bytes
    }

    /// The graph at that sequence.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Reads what other hosts stored since, applies it, and adds it to `read` in its order; what is there when an error
    /// comes was applied too.
    ///
    /// # Errors
    /// As the database says. [`StoreError::Stale`] if the journal does not go back that far: open it anew.
    pub async fn catch_up(&mut self, c: &mut impl Connection, read: &mut Vec<Entry>) -> Result<(), StoreError> {
        loop {
            let entries = canvas::tail(c, self.organization, self.canvas, self.sequence, STEP).await?;
            let last = i64::try_from(entries.len()).is_ok_and(|count| count < STEP);
            if entries.first().is_some_and(|entry| entry.sequence != self.sequence + 1) {
                return Err(StoreError::Stale);
            }
            for entry in entries {
                canvas::replay(&mut self.graph, &entry)?;
                self.learn(&entry);
                read.push(entry);
            }
            if last {
                return Ok(());
            }
        }
    }

    fn learn(&mut self, entry: &Entry) {
        self.sequence = entry.sequence;
        self.tail_bytes += entry.ops.len();
        self.loose_bytes += entry.ops.len();
        if let Some(reference) = &entry.reference {
            self.references.insert(Referred {
                sequence: entry.sequence,
                actor: entry.actor.clone(),
                client: entry.client.clone(),
                reference: reference.clone(),
                digest: entry.digest.clone(),
            });
        }
    }

    /// Stores a batch of messages in one transaction, with the audit events that tell of it.
    pub async fn commit(&mut self, batch: &[Submission], edits: &mut Edits) -> Committed {
        let mut committed =
            Committed { others: Vec::new(), outcomes: Ok(Vec::new()), in_full: HashMap::new(), audited: false };
        let mut plan = self.plan(batch);
        let deadline = Instant::now() + self.patience;
        // Wherever it is given up, `plan` holds what is to be taken back: the graph changes between two waits only.
        let stored = self.store_plan(batch, &mut plan, edits, &mut committed);
        match patience::until(deadline, stored).await {
            Ok(()) => {
                if let (Some((_, end @ None)), Some(first)) = (&mut self.doubtful, plan.entries.first()) {
                    // The canvas was locked for this commit, so whatever was under way before it has ended.
                    *end = Some(first.sequence - 1);
                }
                for entry in &plan.entries {
                    self.learn(entry);
                }
                edits.committed(&plan.stored);
                committed.in_full = plan.in_full;
                committed.outcomes = Ok(plan.outcomes);
            }
            Err(error) => {
                self.revert(plan);
                // A disk that fails while it is written to leaves as much unknown as a silence.
                if matches!(error, StoreError::Unavailable(_) | StoreError::Unwritable(..)) {
                    let from = self.doubtful.map_or(self.sequence + 1, |(from, _)| from);
                    self.doubtful = Some((from, None));
                }
                committed.outcomes = Err(error);
            }
        }
        committed
    }

    async fn store_plan(
        &mut self,
        batch: &[Submission],
        plan: &mut Plan,
        edits: &Edits,
        committed: &mut Committed,
    ) -> Result<(), StoreError> {
        if plan.entries.is_empty() {
            // Nothing to store, but what was refused must have been judged by the latest graph. To read is enough:
            // whoever sends only what is refused must not keep others from writing.
            let mut conn = self.store.read().await?;
            let latest = canvas::sequence(&mut conn, self.organization, self.canvas).await?.unwrap_or(0);
            if latest == self.sequence {
                return Ok(());
            }
            self.revert(std::mem::take(plan));
            self.catch_up(&mut conn, &mut committed.others).await?;
            *plan = self.plan(batch);
            if plan.entries.is_empty() {
                return Ok(());
            }
        }
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let (organization, canvas) = (self.organization, self.canvas);
        let step = |from: i64, plan: &Plan| {
            let bytes: usize = plan.entries.iter().map(|entry| entry.ops.len()).sum();
            let to = from + i64::try_from(plan.entries.len()).unwrap_or(i64::MAX - from);
            (from, to, i64::try_from(bytes).unwrap_or(i64::MAX))
        };
        if !canvas::advance(&mut tx, organization, canvas, step(self.sequence, plan), now).await? {
            self.revert(std::mem::take(plan));
            canvas::create(&mut tx, organization, canvas, now).await?;
            canvas::lock(&mut tx, organization, canvas).await?;
            self.catch_up(&mut tx, &mut committed.others).await?;
            *plan = self.plan(batch);
            if !plan.entries.is_empty()
                && !canvas::advance(&mut tx, organization, canvas, step(self.sequence, plan), now).await?
            {
                return Err(StoreError::Stale);
            }
        }
        if plan.entries.is_empty() {
            return Ok(());
        }
        canvas::append(&mut tx, organization, canvas, &plan.entries).await?;
        committed.audited = edits.record(&mut tx, &plan.stored).await?;
        tx.commit().await
    }

    /// Applies what holds up to the graph, in order, and says what the database is to store.
    fn plan(&mut self, batch: &[Submission]) -> Plan {
        let mut plan = Plan::default();
        let mut new: HashMap<String, Known> = HashMap::new();
        let mut sequence = self.sequence;
        let now = self.clock.now();
        for message in batch {
            let actor = format!("user/{}", message.user);
            let key = message.reference.as_ref().map(|reference| key(&actor, &message.client, reference));
            let before = key.as_ref().and_then(|key| self.references.by_key.get(key).or_else(|| new.get(key)));
            if let Some((before, digest)) = before.filter(|(before, _)| self.may_repeat(message, *before)) {
                let same = digest.as_ref().is_none_or(|digest| *digest == message.digest);
                plan.outcomes.push(if same { Outcome::Repeated(*before) } else { Outcome::Reused(*before) });
                continue;
            }
            match self.graph.apply(&message.ops, &self.limits) {
                Err(rejection) => plan.outcomes.push(Outcome::Rejected(rejection)),
                Ok(undo) => {
                    sequence += 1;
                    new.extend(key.map(|key| (key, (sequence, Some(message.digest.clone())))));
                    let in_full = undo.in_full(&message.ops).and_then(|ops| serde_json::to_string(&ops).ok());
                    plan.undo.push(undo);
                    plan.stored.push((message.user, sequence));
                    plan.outcomes.push(Outcome::Stored(sequence));
                    plan.entries.push(Entry {
                        sequence,
                        actor,
                        client: message.client.clone(),
                        reference: message.reference.clone(),
                        ops: in_full.clone().unwrap_or_else(|| message.text.clone()),
                        digest: Some(message.digest.clone()),
                        created_at: now,
                    });
                    plan.in_full.extend(in_full.map(|ops| (sequence, ops)));
                }
            }
        }
        plan
    }

    /// Whether what was stored as `before` may be this message.
    fn may_repeat(&self, message: &Submission, before: i64) -> bool {
        let doubtful = |(from, to): (i64, Option<i64>)| (from..=to.unwrap_or(i64::MAX)).contains(&before);
        message.repeats.contains(&before) || self.doubtful.is_some_and(doubtful)
    }

    fn revert(&mut self, plan: Plan) {
        for undo in plan.undo.into_iter().rev() {
            self.graph.revert(undo);
        }
    }

    /// Makes a snapshot if it is time, or `at_once`, and forgets what is too old to resume from or more than `keep` bytes. Whether it
    /// did.
    ///
    /// # Errors
    /// As the database says; nothing is lost, it is tried again after more messages.
    pub async fn compact(&mut self, keep: i64, at_once: bool) -> Result<bool, StoreError> {
        if !at_once && self.sequence - self.snapshot < SNAPSHOT_MESSAGES && self.tail_bytes < SNAPSHOT_BYTES {
            return Ok(false);
        }
        let (sequence, now) = (self.sequence, self.clock.now());
        // Counted as done even if it fails: otherwise a database in trouble is troubled with every message.
        (self.snapshot, self.tail_bytes) = (sequence, 0);
        let graph = serde_json::to_string(&self.graph)
            .map_err(|error| StoreError::Database(sqlx::Error::Encode(error.into())))?;
        let mut tx = self.store.begin().await?;
        let forget = (sequence - LOOK_BACK, keep);
        canvas::compact(&mut tx, self.organization, self.canvas, (sequence, &graph), forget, now).await?;
        tx.commit().await?;
        self.loose_bytes = 0;
        Ok(true)
    }
}

/// Whose `ref`; none of the three holds a control character.
fn key(actor: &str, client: &str, reference: &str) -> String {
    format!("{actor}\n{client}\n{reference}")
}

/// The sequence that a reference has, and [`Entry::digest`].
type Known = (i64, Option<Vec<u8>>);

/// The references of the last [`LOOK_BACK`] sequences.
#[derive(Default)]
struct References {
    by_key: HashMap<String, Known>,
    by_age: VecDeque<(i64, String)>,
}

impl References {
    fn insert(&mut self, Referred { sequence, actor, client, reference, digest }: Referred) {
        let key = key(&actor, &client, &reference);
        self.by_key.insert(key.clone(), (sequence, digest));
        self.by_age.push_back((sequence, key));
        while let Some((oldest, key)) = self.by_age.front() {
            if *oldest > sequence - LOOK_BACK {
                break;
            }
            if self.by_key.get(key).is_some_and(|(known, _)| known == oldest) {
                self.by_key.remove(key);
            }
            self.by_age.pop_front();
        }
    }
}
