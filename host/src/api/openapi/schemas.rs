//! Schemas that the derives name or write in a way that reads badly outside.

use serde_json::Value;

/// What a page of a list is called by the derive: `Listed_Agent`.
const PAGE: &str = "Listed_";

/// Calls pages `AgentPage`, and refers to what they list.
pub(super) fn finish(document: &mut Value) {
    if let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut) {
        let old = std::mem::take(schemas);
        for (name, mut schema) in old {
            let Some(item) = name.strip_prefix(PAGE) else {
                schemas.insert(name, schema);
                continue;
            };
            if let Some(items) = schema.pointer_mut("/properties/items") {
                items["items"] = super::reference("schemas", item);
            }
            schemas.insert(format!("{item}Page"), schema);
        }
        schemas.sort_keys();
        schemas.values_mut().for_each(describe_nullable);
    }
    rename(document);
}

/// Describes a property that refers to a schema or is null where the property is: the derive does so within what it refers to,
/// where generated clients do not look.
fn describe_nullable(schema: &mut Value) {
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    for property in properties.into_iter().flat_map(|properties| properties.values_mut()) {
        let Some([referred, null]) = property.get_mut("oneOf").and_then(Value::as_array_mut).map(Vec::as_mut_slice)
        else {
            continue;
        };
        if null["type"] != "null" {
            continue;
        }
        if let Some(description) = referred.as_object_mut().and_then(|referred| referred.remove("description")) {
            property["description"] = description;
        }
    }
}

fn rename(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match (name.as_str(), &member) {
                    ("$ref", Value::String(to)) => {
                        if let Some((section, item)) = to.split_once(PAGE) {
                            *member = format!("{section}{item}Page").into();
                        }
                    }
                    _ => rename(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(rename),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_property_that_may_be_null_is_described_where_it_is() {
        let (id, none) = (super::super::reference("schemas", "Id"), json!({ "type": "null" }));
        let mut described = id.clone();
        described["description"] = json!("Whose it is.");
        let mut schema = json!({ "type": "object", "properties": {
            "name": { "type": "string" }, "either": { "oneOf": [id, id] }, "owner": { "oneOf": [described, none] },
        } });
        describe_nullable(&mut schema);
        assert_eq!(schema["properties"]["owner"], json!({ "oneOf": [id, none], "description": "Whose it is." }));
        assert_eq!(schema["properties"]["either"], json!({ "oneOf": [id, id] }));
        let mut plain = json!({ "type": "string" });
        describe_nullable(&mut plain);
        assert_eq!(plain, json!({ "type": "string" }));
    }
}
