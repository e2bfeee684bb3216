//! The graph of a canvas, put together from its snapshot and its journal.

use tokio::sync::Semaphore;

use super::{
    super::{Connection, StoreError},
    Entry, snapshot, tail,
};
use crate::domain::{
    canvas::{Graph, Limits, Op},
    id::{CanvasId, OrganizationId},
};

/// Messages read at once while a graph is put together.
const STEP: i64 = 256;
/// A snapshot that is replaced while it is read is read again; more often than this it is a defect.
const TRIES: usize = 8;
/// Graphs that are put together at once on threads for what takes long.
static LOADING: Semaphore = Semaphore::const_new(4);

/// What [`load`] found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The last sequence.
    pub sequence: i64,
    /// The graph at that sequence.
    pub graph: Graph,
    /// Up to where the snapshot went.
    pub snapshot: i64,
    /// Bytes of the operations since.
    pub tail_bytes: usize,
}

/// What a graph is put together from.
#[derive(Debug)]
pub struct Rows {
    snapshot: Option<(i64, String)>,
    /// The messages since, without a gap.
    entries: Vec<Entry>,
}

/// The latest snapshot and what was stored since, as of now. What it takes to put them together needs no connection any more.
///
/// # Errors
/// As the database says; [`StoreError::Database`] if the journal has a gap: a defect.
pub async fn rows(c: &mut impl Connection, organization: OrganizationId, canvas: CanvasId) -> Result<Rows, StoreError> {
    'again: for _ in 0..TRIES {
        let snapshot = snapshot(c, organization, canvas).await?;
        let mut sequence = snapshot.as_ref().map_or(0, |(sequence, _)| *sequence);
        let mut rows = Rows { snapshot, entries: Vec::new() };
        loop {
            let entries = tail(c, organization, canvas, sequence, STEP).await?;
            let last = i64::try_from(entries.len()).is_ok_and(|count| count < STEP);
            for entry in entries {
                if entry.sequence != sequence + 1 {
                    // A newer snapshot was made between the two statements, and what it covers forgotten.
                    continue 'again;
                }
                sequence = entry.sequence;
                rows.entries.push(entry);
            }
            if last {
                return Ok(rows);
            }
        }
    }
    Err(unreadable(format!("the journal of canvas {canvas} has a gap")))
}

impl Rows {
    /// Puts them together.
    ///
    /// # Errors
    /// [`StoreError::Database`] if they cannot be read: a defect, or an edited database.
    pub fn load(self) -> Result<Loaded, StoreError> {
        let mut loaded = Loaded::default();
        if let Some((sequence, text)) = self.snapshot {
            loaded.graph = serde_json::from_str(&text).map_err(unreadable)?;
            (loaded.sequence, loaded.snapshot) = (sequence, sequence);
        }
        for entry in self.entries {
            replay(&mut loaded.graph, &entry)?;
            loaded.sequence = entry.sequence;
            loaded.tail_bytes += entry.ops.len();
        }
        Ok(loaded)
    }

    /// Puts them together, and makes something of the result, on a thread for what takes long: megabytes of JSON would hold up those
    /// that answer requests. A few at once; `place` is kept until it is done, whether or not somebody still waits for it.
    ///
    /// # Errors
    /// As [`Rows::load`] and `then`.
    pub async fn load_aside<T: Send + 'static>(
        self,
        place: impl Send + 'static,
        then: impl FnOnce(Loaded) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let of_host = LOADING.acquire().await.map_err(unreadable)?;
        let loading = tokio::task::spawn_blocking(move || {
            let _places = (place, of_host);
            then(self.load()?)
        });
        loading.await.map_err(unreadable)?
    }
}

/// The graph as of now: the latest snapshot and what was stored since.
///
/// # Errors
/// As [`rows`] and [`Rows::load`].
pub async fn load(
    c: &mut impl Connection,
    organization: OrganizationId,
    canvas: CanvasId,
) -> Result<Loaded, StoreError> {
    rows(c, organization, canvas).await?.load()
}

/// The graph and its sequence as of now, for whoever cuts a version; empty before the first message.
///
/// # Errors
/// As [`load`].
pub async fn graph(
    c: &mut impl Connection,
    organization: OrganizationId,
    canvas: CanvasId,
) -> Result<(i64, Graph), StoreError> {
    let loaded = load(c, organization, canvas).await?;
    Ok((loaded.sequence, loaded.graph))
}

/// Applies a stored message to the graph before it.
///
/// # Errors
/// [`StoreError::Database`] if it does not apply, which it did once: a defect, or an edited database.
pub fn replay(graph: &mut Graph, entry: &Entry) -> Result<(), StoreError> {
    let ops: Vec<Op> = serde_json::from_str(&entry.ops).map_err(unreadable)?;
    graph.apply(&ops, &Limits::REPLAY).map(drop).map_err(unreadable)
}

fn unreadable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Database(sqlx::Error::Decode(error.into()))
}
