//! The canvas: what may be done to a graph of nodes and edges, and what comes of it.
//!
//! Nodes and edges are React Flow's own objects (`id type position{x,y} data`, `id source target sourceHandle
//! targetHandle data`); fields that are not known here are kept. The rules, the same for the server and every client:
//!
//! | operation | effect |
//! |---|---|
//! | `node.put`, `edge.put` | adds the object, or replaces the one with its id in its place |
//! | `node.patch`, `edge.patch` | each property in `set` replaces that property whole; `null` removes it; the rest stays |
//! | `node.remove` | removes the node, the nodes below it (whose `parentId` leads to it) and every edge at any of these; nothing if it is gone already |
//! | `edge.remove` | removes the edge; nothing if it is gone already (a client that removes a node names its edges too) |
//!
//! Whoever writes a property last, in the server's order, wins. A message's operations apply all or none. Rejected are: a
//! patch of what is not there, an edge to a node that is not there, a `parentId` that is not there or leads back to the
//! node itself, a change of `id`, and what is over [`Limits`].
//!
//! As React Flow wants it, parents come before their children: a node that is given a parent after it in the order moves
//! to the end, and the nodes below it too, in the order they had.

mod graph;
mod schema;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use graph::{Graph, Items, Undo};
pub use schema::{CanvasEdge, CanvasNode, CanvasPosition};

/// A node or an edge: a JSON object with a string `id`.
pub type Object = Map<String, Value>;

/// One operation on a graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op")]
pub enum Op {
    /// Adds or replaces a node.
    #[serde(rename = "node.put")]
    NodePut {
        /// The whole node.
        node: Object,
    },
    /// Changes properties of a node.
    #[serde(rename = "node.patch")]
    NodePatch {
        /// Which node.
        id: String,
        /// New values by property; `null` removes.
        set: Object,
    },
    /// Removes a node and every edge at it.
    #[serde(rename = "node.remove")]
    NodeRemove {
        /// Which node.
        id: String,
    },
    /// Adds or replaces an edge.
    #[serde(rename = "edge.put")]
    EdgePut {
        /// The whole edge.
        edge: Object,
    },
    /// Changes properties of an edge.
    #[serde(rename = "edge.patch")]
    EdgePatch {
        /// Which edge.
        id: String,
        /// New values by property; `null` removes.
        set: Object,
    },
    /// Removes an edge.
    #[serde(rename = "edge.remove")]
    EdgeRemove {
        /// Which edge.
        id: String,
    },
}

/// How much a canvas may hold. Checked where something is added, so that lowering one never breaks what is there.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Nodes of a graph.
    pub nodes: usize,
    /// Edges of a graph.
    pub edges: usize,
    /// Bytes of one node or edge as JSON.
    pub object: usize,
    /// Bytes of all nodes and edges as JSON.
    pub graph: usize,
    /// Values in all nodes and edges, as [`Graph::values`] counts them: in memory each takes many times its text.
    pub values: usize,
    /// Operations of one message.
    pub ops: usize,
    /// Nodes and edges that one message may write or visit, those that follow from its operations included.
    pub work: usize,
    /// Whether operations come from the journal, where rules of an earlier version accepted them: a `parentId` that is
    /// not possible is then taken out instead of refused, and children outlive their parent, without it.
    pub mend: bool,
}

impl Limits {
    /// Those of every canvas unless settings say otherwise. `work` allows for a message that removes all of the largest canvas
    /// that can be set.
    pub const CANVAS: Self = Self {
        nodes: 2_000,
        edges: 5_000,
        object: 64 * 1024,
        graph: 4 * 1024 * 1024,
        values: 200_000,
        ops: 1_000,
        work: 20_000,
        mend: false,
    };

    /// For operations that were accepted before: what was within the limits then, is.
    pub const REPLAY: Self = Self {
        nodes: usize::MAX,
        edges: usize::MAX,
        object: usize::MAX,
        graph: usize::MAX,
        values: usize::MAX,
        ops: usize::MAX,
        work: usize::MAX,
        mend: true,
    };
}

/// Bytes of an id, at the most. Editors make edge ids of both nodes' and both handles' ids: 293 bytes were seen.
pub const ID: usize = 512;
/// Levels of nesting within a node or edge, at the most: readers of JSON stop at 128 levels, and a graph is nested in more.
pub const DEPTH: usize = 64;

/// Why operations were not applied, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The object does not hold up.
    Invalid,
    /// A patch of what is not there.
    NotFound,
    /// An edge to a node that is not there.
    MissingNode,
    /// A `parentId` of a node that is not there.
    MissingParent,
    /// A `parentId` that leads back to the node itself.
    ParentCycle,
    /// A change of an id.
    Immutable,
    /// Over one of the [`Limits`].
    Limit,
}

/// Why a message's operations were not applied, none of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operation {op}: {detail}")]
pub struct Rejection {
    /// For programs.
    pub code: Code,
    /// Which of the message's operations, from 0.
    pub op: usize,
    /// What to change.
    pub detail: String,
}
