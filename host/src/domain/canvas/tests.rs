//! The rules one by one, and properties that hold for any history.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Code, Graph, Limits, Op};

fn ops(value: Value) -> Vec<Op> {
    serde_json::from_value(value).unwrap()
}

fn node(id: &str) -> Value {
    json!({ "op": "node.put", "node": { "id": id, "position": { "x": 1, "y": 2.5 }, "data": {} } })
}

fn edge(id: &str, source: &str, target: &str) -> Value {
    json!({ "op": "edge.put", "edge": { "id": id, "source": source, "target": target } })
}

fn child(id: &str, parent: &str) -> Value {
    json!({ "op": "node.put", "node": { "id": id, "parentId": parent, "position": { "x": 1, "y": 1 } } })
}

fn reparent(id: &str, parent: Value) -> Value {
    json!({ "op": "node.patch", "id": id, "set": { "parentId": parent } })
}

fn order(graph: &Graph) -> String {
    graph.nodes.iter().map(|node| node["id"].as_str().unwrap().to_owned()).collect()
}

fn graph_of(value: Value) -> Graph {
    let mut graph = Graph::default();
    drop(graph.apply(&ops(value), &Limits::CANVAS).unwrap());
    graph
}

fn rejected(graph: &Graph, value: Value) -> (Code, usize) {
    rejected_within(graph, value, &Limits::CANVAS)
}

fn rejected_within(graph: &Graph, value: Value, limits: &Limits) -> (Code, usize) {
    let mut after = graph.clone();
    let rejection = after.apply(&ops(value), limits).unwrap_err();
    assert_eq!(&after, graph, "a rejected message must change nothing");
    (rejection.code, rejection.op)
}

#[test]
fn unknown_fields_are_kept() {
    let graph = graph_of(json!([
        { "op": "node.put", "node": { "id": "n", "type": "llm", "position": { "x": 0, "y": 0 }, "zIndex": 7, "measured": { "width": 10 } } }
    ]));
    assert_eq!(graph.nodes.get("n").unwrap()["measured"]["width"], 10);
    assert_eq!(graph.nodes.get("n").unwrap()["zIndex"], 7);
}

#[test]
fn a_patch_replaces_properties_whole_and_null_removes() {
    let mut graph = graph_of(json!([
        { "op": "node.put", "node": { "id": "n", "position": { "x": 0, "y": 0 }, "data": { "a": 1, "b": 2 }, "selected": true } },
    ]));
    let patch = json!([{ "op": "node.patch", "id": "n", "set": { "data": { "c": 3 }, "selected": null } }]);
    drop(graph.apply(&ops(patch), &Limits::CANVAS).unwrap());
    let expected = json!({ "id": "n", "position": { "x": 0, "y": 0 }, "data": { "c": 3 } });
    assert_eq!(Value::Object(graph.nodes.get("n").unwrap().clone()), expected);
}

#[test]
fn removing_a_node_removes_its_edges_and_no_others() {
    let mut graph = graph_of(json!([
        node("a"),
        node("b"),
        node("c"),
        edge("ab", "a", "b"),
        edge("bc", "b", "c"),
        edge("ca", "c", "a"),
        edge("aa", "a", "a")
    ]));
    drop(graph.apply(&ops(json!([{ "op": "node.remove", "id": "a" }])), &Limits::CANVAS).unwrap());
    assert_eq!(graph.edges.iter().map(|edge| &edge["id"]).collect::<Vec<_>>(), ["bc"]);
    // React Flow names the edges of a removed node too.
    drop(graph.apply(&ops(json!([{ "op": "edge.remove", "id": "ab" }])), &Limits::CANVAS).unwrap());
}

#[test]
fn an_edge_that_was_moved_goes_with_its_new_node() {
    let mut graph = graph_of(json!([node("a"), node("b"), node("c"), edge("e", "a", "b")]));
    let moved =
        json!([{ "op": "edge.patch", "id": "e", "set": { "target": "c" } }, { "op": "node.remove", "id": "b" }]);
    drop(graph.apply(&ops(moved), &Limits::CANVAS).unwrap());
    assert_eq!(graph.edges.len(), 1);
    drop(graph.apply(&ops(json!([{ "op": "node.remove", "id": "c" }])), &Limits::CANVAS).unwrap());
    assert!(graph.edges.is_empty());
}

#[test]
fn what_does_not_hold_up_is_rejected_with_code_and_place() {
    let graph = graph_of(json!([node("a"), node("b"), edge("e", "a", "b")]));
    let cases = [
        (json!([node("c"), edge("f", "a", "nowhere")]), Code::MissingNode, 1),
        (json!([{ "op": "node.remove", "id": "a" }, edge("f", "a", "b")]), Code::MissingNode, 1),
        (json!([{ "op": "edge.patch", "id": "e", "set": { "source": "nowhere" } }]), Code::MissingNode, 0),
        (json!([{ "op": "edge.patch", "id": "e", "set": { "source": null } }]), Code::Invalid, 0),
        (json!([{ "op": "node.patch", "id": "nowhere", "set": {} }]), Code::NotFound, 0),
        (json!([{ "op": "node.patch", "id": "a", "set": { "id": "z" } }]), Code::Immutable, 0),
        (json!([{ "op": "node.patch", "id": "a", "set": { "id": null } }]), Code::Immutable, 0),
        (json!([{ "op": "node.patch", "id": "a", "set": { "position": { "x": 1 } } }]), Code::Invalid, 0),
        (json!([{ "op": "node.put", "node": { "position": { "x": 1, "y": 1 } } }]), Code::Invalid, 0),
        (json!([{ "op": "node.put", "node": { "id": "" } }]), Code::Invalid, 0),
        (json!([{ "op": "node.put", "node": { "id": "a\u{0}" } }]), Code::Invalid, 0),
        (json!([{ "op": "node.put", "node": { "id": "x".repeat(513) } }]), Code::Invalid, 0),
        (json!([{ "op": "node.put", "node": { "id": "big", "data": "x".repeat(70_000) } }]), Code::Limit, 0),
    ];
    for (message, code, place) in cases {
        assert_eq!(rejected(&graph, message.clone()), (code, place), "{message}");
    }
    let deep = (0..70).fold(json!(1), |inner, _| json!([inner]));
    assert_eq!(
        rejected(&graph, json!([{ "op": "node.put", "node": { "id": "d", "data": deep } }])),
        (Code::Invalid, 0)
    );
}

#[test]
fn limits_hold_and_an_overfull_graph_can_be_cleaned_up() {
    let graph = graph_of(json!([node("a"), node("b"), edge("e", "a", "b")]));
    let two = Limits { nodes: 2, edges: 1, ops: 2, ..Limits::CANVAS };
    assert_eq!(rejected_within(&graph, json!([node("a"), node("c")]), &two), (Code::Limit, 1));
    assert_eq!(rejected_within(&graph, json!([edge("f", "a", "b")]), &two), (Code::Limit, 0));
    assert_eq!(rejected_within(&graph, json!([node("a"), node("a"), node("a")]), &two), (Code::Limit, 2));
    let tiny = Limits { graph: 10, ..Limits::CANVAS };
    let grow = json!([{ "op": "node.patch", "id": "a", "set": { "data": { "more": true } } }]);
    assert_eq!(rejected_within(&graph, grow, &tiny), (Code::Limit, 0));
    let mut graph = graph;
    let shrink =
        json!([{ "op": "node.patch", "id": "a", "set": { "data": null } }, { "op": "node.remove", "id": "b" }]);
    drop(graph.apply(&ops(shrink), &tiny).unwrap());
}

#[test]
fn values_count_beside_their_text_and_what_is_stored_loads() {
    let list = |id: &str, count: usize| json!({ "op": "node.put", "node": { "id": id, "data": vec![0; count] } });
    // Two of the node's own, which count as four, and the list's.
    assert_eq!(graph_of(json!([list("a", 0)])).values(), 4);
    assert_eq!(graph_of(json!([list("a", 1)])).values(), 8);
    assert_eq!(graph_of(json!([list("a", 100)])).values(), 104);
    let nested = json!([{ "op": "node.put", "node": { "id": "a", "data": [[0], {}, { "x": [0] }] } }]);
    assert_eq!(graph_of(nested).values(), 4 + 4 + 4 + 4 + 4);
    let few = Limits { values: 300, ..Limits::CANVAS };
    let graph = graph_of(json!([list("a", 200)]));
    assert_eq!(rejected_within(&graph, json!([list("b", 10), list("c", 100)]), &few), (Code::Limit, 1));
    // 32,000 zeros in 64 KB, ten times: far below what a canvas may have as text.
    let many: Vec<Value> = (0..10).map(|n| list(&n.to_string(), 32_000)).collect();
    assert_eq!(rejected(&Graph::default(), Value::from(many.clone())), (Code::Limit, 6));
    let mut stored = Graph::default();
    drop(stored.apply(&ops(Value::from(many)), &Limits::REPLAY).unwrap());
    let mut loaded: Graph = serde_json::from_value(serde_json::to_value(&stored).unwrap()).unwrap();
    assert_eq!(loaded.values(), 10 * 32_004);
    drop(loaded.apply(&ops(json!([list("0", 31_000), { "op": "node.remove", "id": "1" }])), &Limits::CANVAS).unwrap());
    assert_eq!(rejected(&loaded, json!([list("0", 31_001)])), (Code::Limit, 0));
}

#[test]
fn order_is_that_of_adding_and_survives_replacing() {
    let mut graph = graph_of(json!([node("b"), node("a"), node("c")]));
    drop(graph.apply(&ops(json!([node("b")])), &Limits::CANVAS).unwrap());
    assert_eq!(order(&graph), "bac");
    let undo = graph.apply(&ops(json!([{ "op": "node.remove", "id": "a" }, node("a")])), &Limits::CANVAS).unwrap();
    assert_eq!(order(&graph), "bca");
    graph.revert(undo);
    assert_eq!(order(&graph), "bac");
}

#[test]
fn a_parent_must_be_there_and_not_be_the_node_itself_or_below_it() {
    let graph = graph_of(json!([node("a"), child("b", "a"), child("c", "b"), node("d")]));
    let cases = [
        (json!([child("e", "nowhere")]), Code::MissingParent, 0),
        (json!([child("e", "f"), node("f")]), Code::MissingParent, 0),
        (json!([child("e", "e")]), Code::ParentCycle, 0),
        (json!([reparent("a", json!("nowhere"))]), Code::MissingParent, 0),
        (json!([reparent("a", json!("a"))]), Code::ParentCycle, 0),
        (json!([reparent("a", json!("c"))]), Code::ParentCycle, 0),
        (json!([child("a", "b")]), Code::ParentCycle, 0),
        (json!([reparent("d", json!(""))]), Code::Invalid, 0),
        (json!([reparent("d", json!(7))]), Code::Invalid, 0),
        (json!([{ "op": "node.remove", "id": "d" }, reparent("a", json!("d"))]), Code::MissingParent, 1),
    ];
    for (message, code, place) in cases {
        assert_eq!(rejected(&graph, message.clone()), (code, place), "{message}");
    }
    let mut graph = graph;
    drop(graph.apply(&ops(json!([reparent("b", Value::Null), reparent("a", json!("c"))])), &Limits::CANVAS).unwrap());
    assert_eq!(order(&graph), "bcda");
    consistent(&graph);
}

#[test]
fn removing_a_parent_removes_what_is_below_it_and_the_stored_operations_say_so() {
    let before = graph_of(json!([
        node("a"),
        child("b", "a"),
        child("c", "b"),
        node("d"),
        edge("cd", "c", "d"),
        edge("dd", "d", "d")
    ]));
    let mut graph = before.clone();
    let message = ops(json!([node("z"), { "op": "node.remove", "id": "a" }, { "op": "node.remove", "id": "b" }]));
    let undo = graph.apply(&message, &Limits::CANVAS).unwrap();
    assert_eq!(order(&graph), "dz");
    assert_eq!(graph.edges.iter().map(|edge| &edge["id"]).collect::<Vec<_>>(), ["dd"]);
    let full = undo.in_full(&message).unwrap();
    let removed = |id: &str| Op::NodeRemove { id: id.into() };
    assert_eq!(full[1..], [removed("c"), removed("b"), removed("a"), removed("b")]);
    let mut replayed = before.clone();
    drop(replayed.apply(&full, &Limits::REPLAY).unwrap());
    assert_eq!(replayed, graph);
    graph.revert(undo);
    assert_eq!(graph, before);
    consistent(&graph);
}

#[test]
fn a_node_moves_behind_its_new_parent_with_everything_below_it() {
    let mut graph = graph_of(json!([node("a"), node("b"), child("c", "a"), child("d", "c"), node("g"), node("h")]));
    let before = graph.clone();
    let undo =
        graph.apply(&ops(json!([reparent("a", json!("g")), reparent("h", json!("g"))])), &Limits::CANVAS).unwrap();
    assert_eq!(order(&graph), "bghacd");
    consistent(&graph);
    graph.revert(undo);
    assert_eq!((order(&graph).as_str(), &graph), ("abcdgh", &before));
}

#[test]
fn what_earlier_rules_stored_loads_with_parents_first_and_without_impossible_ones() {
    let plain = |id: &str, parent: Value| json!({ "id": id, "parentId": parent, "position": { "x": 0, "y": 0 } });
    let stored = json!({ "edges": [], "nodes": [
        plain("a", json!("d")), plain("b", json!("gone")), plain("c", json!("c")), plain("d", Value::Null),
        plain("e", json!("f")), plain("f", json!("e")), plain("g", json!(7)), plain("h", json!("a")),
    ] });
    let graph: Graph = serde_json::from_value(stored).unwrap();
    consistent(&graph);
    assert_eq!(order(&graph), "dabcfegh");
    let parents: Vec<_> = graph.nodes.iter().filter_map(|node| node.get("parentId")?.as_str()).collect();
    assert_eq!(parents, ["d", "f", "a"], "one of the two in the cycle keeps its parent");
    // Entries of the journal that earlier rules took.
    let mut graph = graph_of(json!([node("a"), child("b", "a")]));
    let old = json!([{ "op": "node.remove", "id": "a" }, child("c", "a"), { "op": "node.patch", "id": "b", "set": { "data": 1 } }]);
    drop(graph.apply(&ops(old), &Limits::REPLAY).unwrap());
    assert_eq!(order(&graph), "bc");
    consistent(&graph);
}

#[test]
fn the_work_of_one_message_is_bounded() {
    let mut all = vec![node("g")];
    all.extend((0..900).map(|n| child(&format!("n{n}"), "g")));
    let graph = graph_of(Value::from(all));
    // Each pair removes a node and puts it behind `g` again, which then moves behind it with all of its children.
    let pair = |n: usize| {
        [
            json!({ "op": "node.remove", "id": format!("p{n}") }),
            node(&format!("p{n}")),
            reparent("g", json!(format!("p{n}"))),
        ]
    };
    let again: Vec<Value> = (0..50).flat_map(pair).collect();
    let (code, place) = rejected(&graph, Value::from(again));
    assert_eq!(code, Code::Limit);
    assert!((20..80).contains(&place), "{place}");
}

fn any_id() -> impl Strategy<Value = String> {
    "[a-e]"
}

fn any_set() -> impl Strategy<Value = Value> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<f64>().prop_map(|x| json!(x)),
        any::<i64>().prop_map(|x| json!(x)),
        ".{0,4}".prop_map(Value::from)
    ];
    proptest::collection::btree_map("[p-r]", value, 0..3).prop_map(|set| json!(set))
}

fn any_op() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => (any_id(), any::<f64>()).prop_map(|(id, x)| json!({ "op": "node.put", "node": { "id": id, "position": { "x": x, "y": 0 } } })),
        3 => (any_id(), any_set()).prop_map(|(id, set)| json!({ "op": "node.patch", "id": id, "set": set })),
        1 => any_id().prop_map(|id| json!({ "op": "node.remove", "id": id })),
        2 => (any_id(), any_id()).prop_map(|(id, parent)| child(&id, &parent)),
        2 => (any_id(), any_id()).prop_map(|(id, parent)| reparent(&id, json!(parent))),
        1 => any_id().prop_map(|id| reparent(&id, Value::Null)),
        3 => (any_id(), any_id(), any_id()).prop_map(|(id, a, b)| edge(&id, &a, &b)),
        1 => (any_id(), any_set()).prop_map(|(id, set)| json!({ "op": "edge.patch", "id": id, "set": set })),
        1 => (any_id(), any_id()).prop_map(|(id, to)| json!({ "op": "edge.patch", "id": id, "set": { "target": to } })),
        1 => any_id().prop_map(|id| json!({ "op": "edge.remove", "id": id })),
    ]
}

/// Messages of one client.
fn any_messages() -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::vec(proptest::collection::vec(any_op(), 1..4).prop_map(Value::from), 0..24)
}

/// As the server does it: what holds up is stored, as text.
fn live(messages: &[Value]) -> (Graph, Vec<String>) {
    let mut graph = Graph::default();
    let mut journal = Vec::new();
    for message in messages {
        let before = graph.clone();
        let ops = ops(message.clone());
        match graph.apply(&ops, &Limits::CANVAS) {
            Ok(undo) => journal.push(serde_json::to_string(&undo.in_full(&ops).unwrap_or(ops)).unwrap()),
            Err(_) => assert_eq!(graph, before, "a rejected message must change nothing"),
        }
        consistent(&graph);
    }
    (graph, journal)
}

fn replay(graph: &mut Graph, journal: &[String]) {
    for text in journal {
        drop(graph.apply(&serde_json::from_str::<Vec<Op>>(text).unwrap(), &Limits::REPLAY).unwrap());
    }
}

/// No dangling edge, parents before their children, no duplicate id, and the counted size is the real one.
fn consistent(graph: &Graph) {
    for edge in graph.edges.iter() {
        for end in ["source", "target"] {
            assert!(graph.nodes.get(edge[end].as_str().unwrap()).is_some(), "{edge:?} dangles");
        }
    }
    let mut before = std::collections::BTreeSet::new();
    for node in graph.nodes.iter() {
        let parent = node.get("parentId").filter(|parent| !parent.is_null());
        assert!(parent.is_none_or(|parent| before.contains(parent.as_str().unwrap())), "{node:?} precedes its parent");
        before.insert(node["id"].as_str().unwrap());
    }
    for items in [&graph.nodes, &graph.edges] {
        let ids: std::collections::BTreeSet<_> = items.iter().map(|item| item["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), items.len());
    }
    let real: usize =
        graph.nodes.iter().chain(graph.edges.iter()).map(|o| serde_json::to_string(o).unwrap().len()).sum();
    assert_eq!(graph.bytes(), real);
    let again: Graph = serde_json::from_value(serde_json::to_value(graph).unwrap()).unwrap();
    assert_eq!(graph.values(), again.values());
}

/// Deals the clients' messages into one order, each client's own order kept.
fn interleave(clients: &[Vec<Value>], turns: &[usize]) -> Vec<Value> {
    let mut queues: Vec<_> = clients.iter().map(|messages| messages.iter()).collect();
    let mut order = Vec::new();
    for turn in turns {
        let count = queues.len();
        order.extend(queues[turn % count].next().cloned());
    }
    order.extend(queues.into_iter().flatten().cloned());
    order
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_journal_from_scratch_is_the_live_graph(messages in any_messages()) {
        let (graph, journal) = live(&messages);
        let mut again = Graph::default();
        replay(&mut again, &journal);
        prop_assert_eq!(&again, &graph);
        // To the byte: digests are made of it.
        prop_assert_eq!(serde_json::to_string(&again).unwrap(), serde_json::to_string(&graph).unwrap());
    }

    #[test]
    fn a_snapshot_and_the_tail_are_the_whole(messages in any_messages(), at in any::<prop::sample::Index>()) {
        let (graph, journal) = live(&messages);
        let cut = at.index(journal.len() + 1);
        let mut until = Graph::default();
        replay(&mut until, &journal[..cut]);
        let mut joined: Graph = serde_json::from_str(&serde_json::to_string(&until).unwrap()).unwrap();
        prop_assert_eq!(&joined, &until);
        replay(&mut joined, &journal[cut..]);
        prop_assert_eq!(&joined, &graph);
        consistent(&joined);
    }

    #[test]
    fn any_interleaving_converges(clients in proptest::collection::vec(any_messages(), 1..4), turns in proptest::collection::vec(any::<usize>(), 0..60)) {
        let (graph, journal) = live(&interleave(&clients, &turns));
        // Replicas that joined at different times and then followed the same order.
        for joined_at in 0..=journal.len() {
            let mut replica = Graph::default();
            replay(&mut replica, &journal[..joined_at]);
            let mut replica: Graph = serde_json::from_value(serde_json::to_value(&replica).unwrap()).unwrap();
            replay(&mut replica, &journal[joined_at..]);
            prop_assert_eq!(&replica, &graph);
        }
    }

    #[test]
    fn the_last_writer_of_a_property_wins(
        sets in proptest::collection::vec(proptest::collection::vec(any_set(), 0..12), 1..4),
        turns in proptest::collection::vec(any::<usize>(), 0..40),
    ) {
        let clients: Vec<Vec<Value>> = sets.iter()
            .map(|sets| sets.iter().map(|set| json!([{ "op": "node.patch", "id": "n", "set": set }])).collect())
            .collect();
        let order = interleave(&clients, &turns);
        let mut graph = graph_of(json!([{ "op": "node.put", "node": { "id": "n" } }]));
        let mut expected = serde_json::Map::from_iter([("id".to_owned(), json!("n"))]);
        for message in &order {
            drop(graph.apply(&ops(message.clone()), &Limits::CANVAS).unwrap());
            for (property, value) in message[0]["set"].as_object().unwrap() {
                match value {
                    Value::Null => { expected.retain(|known, _| known != property); }
                    value => { expected.insert(property.clone(), value.clone()); }
                }
            }
        }
        prop_assert_eq!(graph.nodes.get("n").unwrap(), &expected);
    }

    #[test]
    fn reverting_restores(before in any_messages(), message in proptest::collection::vec(any_op(), 1..6)) {
        let (mut graph, _) = live(&before);
        let was = graph.clone();
        if let Ok(undo) = graph.apply(&ops(Value::from(message)), &Limits::CANVAS) {
            graph.revert(undo);
        }
        prop_assert_eq!(serde_json::to_string(&graph).unwrap(), serde_json::to_string(&was).unwrap());
        consistent(&graph);
    }
}
