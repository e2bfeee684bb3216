//! The graph of a canvas, put together from its snapshot and its journal.

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

/// The graph as of now: the latest snapshot and what was stored since.
///
/// # Errors
/// As the database says; [`StoreError::Database`] if the journal has a gap or cannot be read: a defect.
pub async fn load(
    c: &mut impl Connection,
    organization: OrganizationId,
    canvas: CanvasId,
) -> Result<Loaded, StoreError> {
    'again: for _ in 0..TRIES {
        let mut loaded = Loaded::default();
        if let Some((sequence, text)) = snapshot(c, organization, canvas).await? {
            loaded.graph = serde_json::from_str(&text).map_err(unreadable)?;
            loaded.sequence = sequence;
            loaded.snapshot = sequence;
        }
        loop {
            let entries = tail(c, organization, canvas, loaded.sequence, STEP).await?;
            let last = i64::try_from(entries.len()).is_ok_and(|count| count < STEP);
            for entry in entries {
                if entry.sequence != loaded.sequence + 1 {
                    // A newer snapshot was made between the two statements, and what it covers forgotten.
                    continue 'again;
                }
                replay(&mut loaded.graph, &entry)?;
                loaded.sequence = entry.sequence;
                loaded.tail_bytes += entry.ops.len();
            }
            if last {
                return Ok(loaded);
            }
        }
    }
    Err(unreadable(format!("the journal of canvas {canvas} has a gap")))
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
