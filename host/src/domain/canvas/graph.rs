//! A graph of nodes and edges, and how operations change it: all of a message's or none.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;

use super::{Code, DEPTH, ID, Limits, Object, Op, Rejection};

/// Nodes or edges in the order they were added: React Flow draws in that order, and wants parents before children.
#[derive(Debug, Clone, Default)]
pub struct Items {
    slots: BTreeMap<u64, Item>,
    index: HashMap<String, u64>,
    next: u64,
    bytes: usize,
}

#[derive(Debug, Clone)]
struct Item {
    object: Object,
    /// As JSON.
    bytes: usize,
}

impl Items {
    /// How many.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The one with this id.
    pub fn get(&self, id: &str) -> Option<&Object> {
        self.slots.get(self.index.get(id)?).map(|item| &item.object)
    }

    /// All, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Object> {
        self.slots.values().map(|item| &item.object)
    }
}

impl PartialEq for Items {
    /// The same objects in the same order.
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Serialize for Items {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// The nodes and edges of a canvas. As JSON: `{"nodes":[…],"edges":[…]}`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Graph {
    /// React Flow's nodes.
    pub nodes: Items,
    /// React Flow's edges; both ends of each are among the nodes.
    pub edges: Items,
    /// By node id, the slots of the edges at it.
    #[serde(skip)]
    touching: HashMap<String, BTreeSet<u64>>,
}

impl PartialEq for Graph {
    fn eq(&self, other: &Self) -> bool {
        self.nodes == other.nodes && self.edges == other.edges
    }
}

impl<'de> Deserialize<'de> for Graph {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Lists {
            nodes: Vec<Object>,
            edges: Vec<Object>,
        }
        let Lists { nodes, edges } = Lists::deserialize(deserializer)?;
        let nodes = nodes.into_iter().map(|node| Op::NodePut { node });
        let ops: Vec<Op> = nodes.chain(edges.into_iter().map(|edge| Op::EdgePut { edge })).collect();
        let mut graph = Self::default();
        drop(graph.apply(&ops, &Limits::REPLAY).map_err(D::Error::custom)?);
        Ok(graph)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Shelf {
    Nodes,
    Edges,
}

/// What [`Graph::revert`] needs to take operations back.
#[derive(Debug, Default)]
#[must_use = "keep it until the operations are stored, or say that they are with `drop`"]
pub struct Undo(Vec<Step>);

#[derive(Debug)]
struct Step {
    shelf: Shelf,
    slot: u64,
    before: Option<Item>,
}

/// A fault of one operation; the caller knows which.
type Fault = (Code, String);

fn invalid(detail: impl Into<String>) -> Fault {
    (Code::Invalid, detail.into())
}

impl Graph {
    /// Applies a message's operations in their order, all or none.
    ///
    /// # Errors
    /// The first operation that does not hold up; the graph is then as it was.
    pub fn apply(&mut self, ops: &[Op], limits: &Limits) -> Result<Undo, Rejection> {
        if ops.len() > limits.ops {
            let detail = format!("{} operations in one message; at most {}", ops.len(), limits.ops);
            return Err(Rejection { code: Code::Limit, op: limits.ops, detail });
        }
        let mut undo = Undo::default();
        for (op, operation) in ops.iter().enumerate() {
            if let Err((code, detail)) = self.step(operation, limits, &mut undo.0) {
                self.revert(undo);
                return Err(Rejection { code, op, detail });
            }
        }
        Ok(undo)
    }

    /// Takes back what [`Graph::apply`] did. Several are taken back in the opposite order.
    pub fn revert(&mut self, undo: Undo) {
        for Step { shelf, slot, before } in undo.0.into_iter().rev() {
            self.set(shelf, slot, before);
        }
    }

    /// All nodes and edges as JSON, in bytes, without what is around them.
    pub fn bytes(&self) -> usize {
        self.nodes.bytes + self.edges.bytes
    }

    fn step(&mut self, op: &Op, limits: &Limits, undo: &mut Vec<Step>) -> Result<(), Fault> {
        match op {
            Op::NodePut { node } => self.put(Shelf::Nodes, node.clone(), limits, undo),
            Op::EdgePut { edge } => self.put(Shelf::Edges, edge.clone(), limits, undo),
            Op::NodePatch { id, set } => self.patch(Shelf::Nodes, id, set, limits, undo),
            Op::EdgePatch { id, set } => self.patch(Shelf::Edges, id, set, limits, undo),
            Op::NodeRemove { id } => {
                let edges = self.touching.get(id).cloned().unwrap_or_default();
                for slot in edges {
                    self.write(Shelf::Edges, slot, None, undo);
                }
                self.remove(Shelf::Nodes, id, undo);
                Ok(())
            }
            Op::EdgeRemove { id } => {
                self.remove(Shelf::Edges, id, undo);
                Ok(())
            }
        }
    }

    fn put(&mut self, shelf: Shelf, object: Object, limits: &Limits, undo: &mut Vec<Step>) -> Result<(), Fault> {
        let id = check(shelf, &object)?;
        if shelf == Shelf::Edges {
            self.ends_exist(&object)?;
        }
        let items = self.shelf(shelf);
        let slot = items.index.get(id).copied();
        let (most, what) = match shelf {
            Shelf::Nodes => (limits.nodes, "nodes"),
            Shelf::Edges => (limits.edges, "edges"),
        };
        if slot.is_none() && items.len() >= most {
            return Err((Code::Limit, format!("the canvas holds {most} {what} already, which is the most")));
        }
        let slot = slot.unwrap_or(items.next);
        let item = self.weigh(shelf, slot, object, limits)?;
        self.write(shelf, slot, Some(item), undo);
        Ok(())
    }

    fn patch(
        &mut self,
        shelf: Shelf,
        id: &str,
        set: &Object,
        limits: &Limits,
        undo: &mut Vec<Step>,
    ) -> Result<(), Fault> {
        let items = self.shelf(shelf);
        let found = items.index.get(id).and_then(|slot| Some((*slot, items.slots.get(slot)?)));
        let Some((slot, item)) = found else {
            return Err((Code::NotFound, format!("there is nothing with the id `{}`", shown(id))));
        };
        if set.get("id").is_some_and(|new| new.as_str() != Some(id)) {
            return Err((Code::Immutable, "`set` must not change `id`: put a new one and remove the old".into()));
        }
        let mut object = item.object.clone();
        // `remove` may move the last property into the gap; the order of the others is to stay.
        object.retain(|property, _| set.get(property) != Some(&Value::Null));
        for (property, value) in set.iter().filter(|(_, value)| !value.is_null()) {
            object.insert(property.clone(), value.clone());
        }
        check(shelf, &object)?;
        if shelf == Shelf::Edges {
            self.ends_exist(&object)?;
        }
        let item = self.weigh(shelf, slot, object, limits)?;
        self.write(shelf, slot, Some(item), undo);
        Ok(())
    }

    fn remove(&mut self, shelf: Shelf, id: &str, undo: &mut Vec<Step>) {
        if let Some(slot) = self.shelf(shelf).index.get(id).copied() {
            self.write(shelf, slot, None, undo);
        }
    }

    fn ends_exist(&self, edge: &Object) -> Result<(), Fault> {
        let missing = ends(edge).into_iter().find(|id| !self.nodes.index.contains_key(*id));
        match missing {
            Some(id) => Err((Code::MissingNode, format!("the edge is to node `{}`, which is not there", shown(id)))),
            None => Ok(()),
        }
    }

    fn weigh(&self, shelf: Shelf, slot: u64, object: Object, limits: &Limits) -> Result<Item, Fault> {
        let bytes = weight(&object);
        if bytes > limits.object {
            return Err((Code::Limit, format!("{bytes} bytes as JSON; one node or edge may have {}", limits.object)));
        }
        let replaced = self.shelf(shelf).slots.get(&slot).map_or(0, |item| item.bytes);
        let total = (self.bytes() + bytes).saturating_sub(replaced);
        // What makes the graph no larger is never refused, or an overfull one could not be cleaned up.
        if total > limits.graph && bytes > replaced {
            return Err((Code::Limit, format!("the canvas would be {total} bytes as JSON; at most {}", limits.graph)));
        }
        Ok(Item { object, bytes })
    }

    fn shelf(&self, shelf: Shelf) -> &Items {
        match shelf {
            Shelf::Nodes => &self.nodes,
            Shelf::Edges => &self.edges,
        }
    }

    fn write(&mut self, shelf: Shelf, slot: u64, item: Option<Item>, undo: &mut Vec<Step>) {
        let before = self.set(shelf, slot, item);
        undo.push(Step { shelf, slot, before });
    }

    /// The one place that changes anything: keeps every index in step, and returns what was in the slot.
    fn set(&mut self, shelf: Shelf, slot: u64, item: Option<Item>) -> Option<Item> {
        let Self { nodes, edges, touching } = self;
        let items = match shelf {
            Shelf::Nodes => nodes,
            Shelf::Edges => edges,
        };
        let before = items.slots.remove(&slot);
        if let Some(Item { object, bytes }) = &before {
            items.bytes -= bytes;
            items.index.remove(id_of(object));
            if shelf == Shelf::Edges {
                for end in ends(object) {
                    if let Some(slots) = touching.get_mut(end) {
                        slots.remove(&slot);
                        if slots.is_empty() {
                            touching.remove(end);
                        }
                    }
                }
            }
        }
        if let Some(item) = item {
            items.bytes += item.bytes;
            items.index.insert(id_of(&item.object).to_owned(), slot);
            items.next = items.next.max(slot + 1);
            if shelf == Shelf::Edges {
                for end in ends(&item.object) {
                    touching.entry(end.to_owned()).or_default().insert(slot);
                }
            }
            items.slots.insert(slot, item);
        }
        before
    }
}

fn id_of(object: &Object) -> &str {
    object.get("id").and_then(Value::as_str).unwrap_or_default()
}

fn ends(edge: &Object) -> [&str; 2] {
    ["source", "target"].map(|end| edge.get(end).and_then(Value::as_str).unwrap_or_default())
}

/// What a node or an edge must be, whatever else it holds. Returns its id.
fn check(shelf: Shelf, object: &Object) -> Result<&str, Fault> {
    let id = identifier(object, "id")?;
    if !matches!(object.get("type"), None | Some(Value::String(_))) {
        return Err(invalid("`type` must be a string"));
    }
    match shelf {
        Shelf::Nodes => {
            let number = |position: &Value, axis| position.get(axis).is_some_and(Value::is_number);
            if object.get("position").is_some_and(|at| !(number(at, "x") && number(at, "y"))) {
                return Err(invalid("`position` must be an object with numbers `x` and `y`"));
            }
        }
        Shelf::Edges => {
            identifier(object, "source")?;
            identifier(object, "target")?;
            for handle in ["sourceHandle", "targetHandle"] {
                if !matches!(object.get(handle), None | Some(Value::Null | Value::String(_))) {
                    return Err(invalid(format!("`{handle}` must be a string or null")));
                }
            }
        }
    }
    if object.values().any(|value| deeper_than(value, DEPTH - 1)) {
        return Err(invalid(format!("nested more than {DEPTH} levels deep")));
    }
    Ok(id)
}

fn identifier<'a>(object: &'a Object, property: &str) -> Result<&'a str, Fault> {
    match object.get(property) {
        Some(Value::String(id)) if !id.is_empty() && id.len() <= ID && !id.chars().any(char::is_control) => Ok(id),
        _ => Err(invalid(format!("`{property}` must be a string of 1 to {ID} bytes without control characters"))),
    }
}

fn deeper_than(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| deeper_than(item, levels - 1)),
        Value::Object(map) => levels == 0 || map.values().any(|item| deeper_than(item, levels - 1)),
        _ => false,
    }
}

/// As much of an id as an error may carry.
fn shown(id: &str) -> String {
    id.chars().take(ID).collect()
}

/// Bytes of the object as JSON.
fn weight(object: &Object) -> usize {
    struct Counter(usize);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // Counting cannot fail, and a `Map` has string keys: `usize::MAX` would only refuse the object.
    serde_json::to_writer(&mut counter, object).map_or(usize::MAX, |()| counter.0)
}
