//! A graph of nodes and edges, and how operations change it: all of a message's or none.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;

use super::{Code, DEPTH, ID, Limits, Object, Op, Rejection};

/// Nodes or edges in the order they were added: React Flow draws in that order. Parents come before their children.
#[derive(Debug, Clone, Default)]
pub struct Items {
    slots: BTreeMap<u64, Item>,
    index: HashMap<String, u64>,
    next: u64,
    bytes: usize,
    values: usize,
}

#[derive(Debug, Clone)]
struct Item {
    /// Shared, since a step that is undone keeps the object as it was.
    object: Arc<Object>,
    /// As JSON.
    bytes: usize,
    /// As [`Graph::values`] counts them.
    values: usize,
}

impl Item {
    fn new(object: Object) -> Self {
        let (bytes, values) = (weight(&object), values_in(object.len(), object.values()));
        Self { object: Arc::new(object), bytes, values }
    }
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
        self.slots.get(self.index.get(id)?).map(|item| &*item.object)
    }

    /// All, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Object> {
        self.slots.values().map(|item| &*item.object)
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
    /// React Flow's nodes; the parent of each is among them, before it.
    pub nodes: Items,
    /// React Flow's edges; both ends of each are among the nodes.
    pub edges: Items,
    /// By node id, the slots of the edges at it.
    #[serde(skip)]
    touching: HashMap<String, BTreeSet<u64>>,
    /// By node id, the slots of the nodes whose parent it is.
    #[serde(skip)]
    children: HashMap<String, BTreeSet<u64>>,
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
        let nodes = parents_first(nodes).into_iter().map(|node| Op::NodePut { node });
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
pub struct Undo {
    steps: Vec<Step>,
    /// Nodes that were removed with their parent: by which operation, and their ids, children before parents.
    followed: Vec<(usize, String)>,
    /// Objects written or visited so far.
    work: usize,
}

impl Undo {
    /// The operations with everything named that followed from them, where that is more than `ops`: a node that is
    /// removed takes its children along. Whoever applies these needs no rule about children.
    pub fn in_full(&self, ops: &[Op]) -> Option<Vec<Op>> {
        if self.followed.is_empty() {
            return None;
        }
        let mut full = Vec::with_capacity(ops.len() + self.followed.len());
        let mut followed = self.followed.iter().peekable();
        for (index, op) in ops.iter().enumerate() {
            while let Some((_, id)) = followed.next_if(|(of, _)| *of == index) {
                full.push(Op::NodeRemove { id: id.clone() });
            }
            full.push(op.clone());
        }
        Some(full)
    }
}

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
            if let Err((code, detail)) = self.step((op, operation), limits, &mut undo) {
                self.revert(undo);
                return Err(Rejection { code, op, detail });
            }
        }
        Ok(undo)
    }

    /// Takes back what [`Graph::apply`] did. Several are taken back in the opposite order.
    pub fn revert(&mut self, undo: Undo) {
        for Step { shelf, slot, before } in undo.steps.into_iter().rev() {
            self.set(shelf, slot, before);
        }
    }

    /// All nodes and edges as JSON, in bytes, without what is around them.
    pub fn bytes(&self) -> usize {
        self.nodes.bytes + self.edges.bytes
    }

    /// Values in all nodes and edges: numbers, texts, lists and objects. What a list or an object holds counts as four at least.
    pub fn values(&self) -> usize {
        self.nodes.values + self.edges.values
    }

    fn step(&mut self, (index, op): (usize, &Op), limits: &Limits, undo: &mut Undo) -> Result<(), Fault> {
        match op {
            Op::NodePut { node } => self.put(Shelf::Nodes, node.clone(), limits, undo)?,
            Op::EdgePut { edge } => self.put(Shelf::Edges, edge.clone(), limits, undo)?,
            Op::NodePatch { id, set } => self.patch(Shelf::Nodes, id, set, limits, undo)?,
            Op::EdgePatch { id, set } => self.patch(Shelf::Edges, id, set, limits, undo)?,
            Op::NodeRemove { id } => {
                if limits.mend {
                    self.orphan(id, undo);
                } else {
                    for child in self.descendants(id).into_iter().rev() {
                        self.remove_node(&child, undo);
                        undo.followed.push((index, child));
                    }
                }
                self.remove_node(id, undo);
            }
            Op::EdgeRemove { id } => self.remove(Shelf::Edges, id, undo),
        }
        if undo.work > limits.work {
            return Err((
                Code::Limit,
                format!("the message changes or visits more than {} objects: split it", limits.work),
            ));
        }
        Ok(())
    }

    fn put(&mut self, shelf: Shelf, mut object: Object, limits: &Limits, undo: &mut Undo) -> Result<(), Fault> {
        let id = check(shelf, &object)?.to_owned();
        let items = self.shelf(shelf);
        let slot = items.index.get(&id).copied();
        let parent = match shelf {
            Shelf::Edges => {
                self.ends_exist(&object)?;
                None
            }
            Shelf::Nodes => self.new_parent(&id, &mut object, limits, undo)?,
        };
        let items = self.shelf(shelf);
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
        self.keep_behind(&id, slot, parent, undo);
        Ok(())
    }

    fn patch(&mut self, shelf: Shelf, id: &str, set: &Object, limits: &Limits, undo: &mut Undo) -> Result<(), Fault> {
        let items = self.shelf(shelf);
        let found = items.index.get(id).and_then(|slot| Some((*slot, items.slots.get(slot)?)));
        let Some((slot, item)) = found else {
            return Err((Code::NotFound, format!("there is nothing with the id `{}`", shown(id))));
        };
        if set.get("id").is_some_and(|new| new.as_str() != Some(id)) {
            return Err((Code::Immutable, "`set` must not change `id`: put a new one and remove the old".into()));
        }
        let mut object = (*item.object).clone();
        // `remove` may move the last property into the gap; the order of the others is to stay.
        object.retain(|property, _| set.get(property) != Some(&Value::Null));
        for (property, value) in set.iter().filter(|(_, value)| !value.is_null()) {
            object.insert(property.clone(), value.clone());
        }
        check(shelf, &object)?;
        let parent = match shelf {
            Shelf::Edges => {
                self.ends_exist(&object)?;
                None
            }
            Shelf::Nodes => self.new_parent(id, &mut object, limits, undo)?,
        };
        let item = self.weigh(shelf, slot, object, limits)?;
        self.write(shelf, slot, Some(item), undo);
        self.keep_behind(id, slot, parent, undo);
        Ok(())
    }

    fn remove(&mut self, shelf: Shelf, id: &str, undo: &mut Undo) {
        if let Some(slot) = self.shelf(shelf).index.get(id).copied() {
            self.write(shelf, slot, None, undo);
        }
    }

    /// A node and the edges at it.
    fn remove_node(&mut self, id: &str, undo: &mut Undo) {
        for slot in self.touching.get(id).cloned().unwrap_or_default() {
            self.write(Shelf::Edges, slot, None, undo);
        }
        self.remove(Shelf::Nodes, id, undo);
    }

    /// The slot of the parent that `object` gives the node `id`, if it has not that parent already. An impossible one is
    /// refused, or taken out where operations of earlier rules are mended.
    fn new_parent(
        &self,
        id: &str,
        object: &mut Object,
        limits: &Limits,
        undo: &mut Undo,
    ) -> Result<Option<u64>, Fault> {
        let Some(parent) = object.get(PARENT).filter(|parent| !parent.is_null()) else { return Ok(None) };
        if self.nodes.get(id).and_then(|before| before.get(PARENT)) == Some(parent) {
            return Ok(None);
        }
        match self.possible_parent(id, object, undo) {
            Ok(slot) => Ok(Some(slot)),
            Err(_) if limits.mend => {
                object.retain(|property, _| property != PARENT);
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    fn possible_parent(&self, id: &str, object: &Object, undo: &mut Undo) -> Result<u64, Fault> {
        let parent = identifier(object, PARENT)?;
        if parent == id {
            return Err((Code::ParentCycle, "a node cannot be its own parent".into()));
        }
        let Some(slot) = self.nodes.index.get(parent).copied() else {
            let detail = format!("the parent `{}` is not there: put it first", shown(parent));
            return Err((Code::MissingParent, detail));
        };
        let mut above = self.nodes.get(parent);
        while let Some(next) = above.and_then(parent_of) {
            undo.work += 1;
            if next == id {
                let detail = format!("`{}` is below this node already, and cannot be its parent too", shown(parent));
                return Err((Code::ParentCycle, detail));
            }
            above = self.nodes.get(next);
        }
        Ok(slot)
    }

    /// A node comes after its parent: if it does not yet, it moves to the end, with everything below it.
    fn keep_behind(&mut self, id: &str, slot: u64, parent: Option<u64>, undo: &mut Undo) {
        if parent.is_none_or(|parent| parent < slot) {
            return;
        }
        let below = self.descendants(id);
        let mut moving: Vec<u64> = below.iter().filter_map(|id| self.nodes.index.get(id)).copied().collect();
        moving.push(slot);
        // In the order they had.
        moving.sort_unstable();
        for slot in moving {
            let item = self.nodes.slots.get(&slot).cloned();
            self.write(Shelf::Nodes, slot, None, undo);
            self.write(Shelf::Nodes, self.nodes.next, item, undo);
        }
    }

    /// Everything below a node, parents before children.
    fn descendants(&self, id: &str) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let mut next = Some(id.to_owned());
        let mut at = 0;
        while let Some(id) = next {
            let children = self.children.get(&id).into_iter().flatten();
            found.extend(
                children.filter_map(|slot| self.nodes.slots.get(slot)).map(|item| id_of(&item.object).to_owned()),
            );
            next = found.get(at).cloned();
            at += 1;
        }
        found
    }

    /// Takes the children of a node from it, as rules did before children were removed with their parent.
    fn orphan(&mut self, id: &str, undo: &mut Undo) {
        for slot in self.children.get(id).cloned().unwrap_or_default() {
            let Some(item) = self.nodes.slots.get(&slot) else { continue };
            let mut object = (*item.object).clone();
            object.retain(|property, _| property != PARENT);
            self.write(Shelf::Nodes, slot, Some(Item::new(object)), undo);
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
        let item = Item::new(object);
        let Item { bytes, values, .. } = item;
        if bytes > limits.object {
            return Err((Code::Limit, format!("{bytes} bytes as JSON; one node or edge may have {}", limits.object)));
        }
        let before = self.shelf(shelf).slots.get(&slot);
        let (bytes_before, values_before) = before.map_or((0, 0), |item| (item.bytes, item.values));
        // What makes the graph no larger is never refused, or an overfull one could not be cleaned up.
        let total = (self.bytes() + bytes).saturating_sub(bytes_before);
        if total > limits.graph && bytes > bytes_before {
            return Err((Code::Limit, format!("the canvas would be {total} bytes as JSON; at most {}", limits.graph)));
        }
        let total = (self.values() + values).saturating_sub(values_before);
        if total > limits.values && values > values_before {
            let most = limits.values;
            let detail = format!(
                "the canvas would hold {total} values; at most {most}: put long lists into one text, or elsewhere"
            );
            return Err((Code::Limit, detail));
        }
        Ok(item)
    }

    fn shelf(&self, shelf: Shelf) -> &Items {
        match shelf {
            Shelf::Nodes => &self.nodes,
            Shelf::Edges => &self.edges,
        }
    }

    fn write(&mut self, shelf: Shelf, slot: u64, item: Option<Item>, undo: &mut Undo) {
        let before = self.set(shelf, slot, item);
        undo.steps.push(Step { shelf, slot, before });
        undo.work += 1;
    }

    /// The one place that changes anything: keeps every index in step, and returns what was in the slot.
    fn set(&mut self, shelf: Shelf, slot: u64, item: Option<Item>) -> Option<Item> {
        let Self { nodes, edges, touching, children } = self;
        let (items, index) = match shelf {
            Shelf::Nodes => (nodes, children),
            Shelf::Edges => (edges, touching),
        };
        let before = items.slots.remove(&slot);
        if let Some(Item { object, bytes, values }) = &before {
            items.bytes -= bytes;
            items.values -= values;
            items.index.remove(id_of(object));
            for key in other_nodes(shelf, object).into_iter().flatten() {
                if let Some(slots) = index.get_mut(key) {
                    slots.remove(&slot);
                    if slots.is_empty() {
                        index.remove(key);
                    }
                }
            }
        }
        if let Some(item) = item {
            items.bytes += item.bytes;
            items.values += item.values;
            items.index.insert(id_of(&item.object).to_owned(), slot);
            items.next = items.next.max(slot + 1);
            for key in other_nodes(shelf, &item.object).into_iter().flatten() {
                index.entry(key.to_owned()).or_default().insert(slot);
            }
            items.slots.insert(slot, item);
        }
        before
    }
}

/// Nodes so that each comes after its parent, otherwise in their order: what was stored by earlier rules may be in another.
fn parents_first(nodes: Vec<Object>) -> Vec<Object> {
    let place: HashMap<String, usize> =
        nodes.iter().enumerate().map(|(at, node)| (id_of(node).to_owned(), at)).collect();
    let above: Vec<Option<usize>> =
        nodes.iter().map(|node| parent_of(node).and_then(|parent| place.get(parent)).copied()).collect();
    let mut waiting: Vec<Option<Object>> = nodes.into_iter().map(Some).collect();
    let mut ordered = Vec::with_capacity(waiting.len());
    let mut chain: Vec<Object> = Vec::new();
    for at in 0..waiting.len() {
        let mut next = Some(at);
        // Ends at the top, at a node that is placed already, and within a cycle, whose nodes are all in the chain.
        while let Some((at, node)) = next.and_then(|at| Some((at, waiting.get_mut(at)?.take()?))) {
            chain.push(node);
            next = above.get(at).copied().flatten();
        }
        ordered.extend(chain.drain(..).rev());
    }
    ordered
}

/// React Flow's property that names the group a node is in.
const PARENT: &str = "parentId";

/// The nodes under whose ids the object is found: a node's parent, an edge's ends.
fn other_nodes(shelf: Shelf, object: &Object) -> [Option<&str>; 2] {
    match shelf {
        Shelf::Nodes => [parent_of(object), None],
        Shelf::Edges => ends(object).map(Some),
    }
}

fn parent_of(node: &Object) -> Option<&str> {
    node.get(PARENT).and_then(Value::as_str)
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
    id.chars().take(128).collect()
}

/// As many values a list or an object has room for in memory once it holds one.
const HELD: usize = 4;

/// Values that a list or an object of `count` holds, and those within them.
fn values_in<'a>(count: usize, values: impl Iterator<Item = &'a Value>) -> usize {
    if count == 0 {
        return 0;
    }
    let within = |value: &Value| match value {
        Value::Array(items) => values_in(items.len(), items.iter()),
        Value::Object(map) => values_in(map.len(), map.values()),
        _ => 0,
    };
    count.max(HELD) + values.map(within).sum::<usize>()
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
