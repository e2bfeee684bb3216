//! Labels of agents and gateways, for the OpenAPI document. [`fault::labels`](super::fault::labels) checks them.

use std::borrow::Cow;

use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, Type},
    },
};

/// The schema of labels: `#[schema(value_type = Labels)]`.
#[derive(Debug)]
pub struct Labels;

const ABOUT: &str = "Labels by key; policies see them. A value is kept in one spelling, without white space around it. One with \
    characters that cannot be seen, or that imitate ASCII's, is refused.";

impl PartialSchema for Labels {
    fn schema() -> RefOr<Schema> {
        let key = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[A-Za-z0-9_./-]{1,63}$")).build();
        let value = ObjectBuilder::new().schema_type(Type::String).max_length(Some(255));
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some(ABOUT))
            .property_names(Some(key))
            .additional_properties(Some(value))
            .max_properties(Some(64))
            .examples([json!({ "team": "support", "cost-center": "4711" })])
            .into()
    }
}

impl ToSchema for Labels {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Labels")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::fault;

    #[test]
    fn the_schema_of_labels_is_what_is_checked() {
        let schema = serde_json::to_value(Labels::schema()).unwrap();
        let (most, longest) = (&schema["maxProperties"], &schema["additionalProperties"]["maxLength"]);
        let (most, longest) = (most.as_u64().unwrap(), usize::try_from(longest.as_u64().unwrap()).unwrap());
        let good = |labels: Vec<(String, String)>| {
            let mut faults = Vec::new();
            fault::labels("", &mut labels.into_iter().collect::<BTreeMap<_, _>>(), &mut faults);
            faults.is_empty()
        };
        let many = |count: u64| (0..count).map(|n| (n.to_string(), String::new())).collect();
        assert!(good(many(most)) && !good(many(most + 1)));
        let one = |key: &str, length: usize| good(vec![(key.to_owned(), "x".repeat(length))]);
        assert!(one("k", longest) && !one("k", longest + 1));
        assert_eq!(schema["propertyNames"]["pattern"], "^[A-Za-z0-9_./-]{1,63}$");
        assert!(one("aZ09_./-", 1) && one(&"k".repeat(63), 1));
        for key in ["", "a b", "\u{e9}", "a:b", &"k".repeat(64)] {
            assert!(!one(key, 1), "{key}");
        }
    }
}
