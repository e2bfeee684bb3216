//! What the OpenAPI document says of nodes and edges: what is checked of them, and that anything else is kept.

use serde_json::Value;

/// A node of React Flow: at most 64 KiB as JSON, nested at most 64 levels deep. Properties that are not named here are kept.
#[derive(Debug, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "n1", "type": "prompt", "position": { "x": 120, "y": 80 }, "data": { "label": "Greeting" },
}))]
pub struct CanvasNode {
    /// The node's id, unique among the canvas's nodes; at most 512 bytes.
    #[schema(min_length = 1, max_length = 512, pattern = r"^[^\u0000-\u001F\u007F-\u009F]+$")]
    pub id: String,
    /// The name by which the editor chooses how to draw the node.
    #[schema(required = false, value_type = String)]
    pub r#type: Option<String>,
    /// Where the node is drawn.
    #[schema(required = false, value_type = CanvasPosition)]
    pub position: Option<CanvasPosition>,
    /// The node that this one is within, which comes before it; at most 512 bytes.
    #[schema(rename = "parentId", min_length = 1, max_length = 512, pattern = r"^[^\u0000-\u001F\u007F-\u009F]+$")]
    pub parent_id: Option<String>,
    /// Whatever the editor keeps about the node.
    #[schema(required = false)]
    pub data: Value,
}

/// A place on the canvas. Properties that are not named here are kept.
#[derive(Debug, utoipa::ToSchema)]
pub struct CanvasPosition {
    /// To the right.
    pub x: f64,
    /// Downwards.
    pub y: f64,
}

/// An edge of React Flow: at most 64 KiB as JSON, nested at most 64 levels deep. Properties that are not named here are kept.
#[derive(Debug, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "n1-n2", "source": "n1", "target": "n2", "sourceHandle": "out", "targetHandle": null,
}))]
pub struct CanvasEdge {
    /// The edge's id, unique among the canvas's edges; at most 512 bytes.
    #[schema(min_length = 1, max_length = 512, pattern = r"^[^\u0000-\u001F\u007F-\u009F]+$")]
    pub id: String,
    /// The name by which the editor chooses how to draw the edge.
    #[schema(required = false, value_type = String)]
    pub r#type: Option<String>,
    /// The id of the node that the edge comes from, which is on the canvas; at most 512 bytes.
    #[schema(min_length = 1, max_length = 512, pattern = r"^[^\u0000-\u001F\u007F-\u009F]+$")]
    pub source: String,
    /// The id of the node that the edge goes to, which is on the canvas; at most 512 bytes.
    #[schema(min_length = 1, max_length = 512, pattern = r"^[^\u0000-\u001F\u007F-\u009F]+$")]
    pub target: String,
    /// Which handle of the source the edge comes from; null or absent where it has one only.
    #[schema(rename = "sourceHandle")]
    pub source_handle: Option<String>,
    /// Which handle of the target the edge goes to; null or absent where it has one only.
    #[schema(rename = "targetHandle")]
    pub target_handle: Option<String>,
    /// Whatever the editor keeps about the edge.
    #[schema(required = false)]
    pub data: Value,
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use utoipa::PartialSchema;

    use super::{
        super::{DEPTH, Graph, ID, Limits, Op},
        *,
    };

    #[test]
    fn the_schemas_of_nodes_and_edges_are_what_is_checked() {
        for (schema, ids) in
            [(CanvasNode::schema(), &["id", "parentId"][..]), (CanvasEdge::schema(), &["id", "source", "target"])]
        {
            let schema = serde_json::to_value(schema).unwrap();
            for id in ids {
                assert_eq!(schema["properties"][id]["maxLength"], ID, "{id}");
            }
            let about = schema["description"].as_str().unwrap();
            assert!(about.contains(&format!("{DEPTH} levels")), "{about}");
            assert!(about.contains(&format!("{} KiB", Limits::CANVAS.object / 1024)), "{about}");
        }
    }

    #[test]
    fn what_the_schema_of_a_node_asks_for_is_asked_for() {
        let good = |node: Value| {
            let Value::Object(node) = node else { return false };
            Graph::default().apply(&[Op::NodePut { node }], &Limits::CANVAS).is_ok()
        };
        assert!(good(json!({ "id": "n" })) && good(json!({ "id": "n", "parentId": null, "data": null, "more": 1 })));
        assert!(good(json!({ "id": "\u{e9}".repeat(ID / 2), "type": "t", "position": { "x": 1, "y": 0.5 } })));
        for bad in [
            json!({}),
            json!({ "id": "" }),
            json!({ "id": "a\u{1f}" }),
            json!({ "id": "a\u{9f}" }),
            json!({ "id": "x".repeat(ID + 1) }),
            json!({ "id": "n", "type": null }),
            json!({ "id": "n", "position": { "x": 1 } }),
        ] {
            assert!(!good(bad.clone()), "{bad}");
        }
    }
}
