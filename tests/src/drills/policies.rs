//! How long validating takes at the most: `tests/drills/policies`.

use reqwest::Method;
use serde_json::json;

use super::{Answers, heading, request};
use crate::{
    harness::{Backend, Client, Setup, World},
    policies::{EVERYTHING, costly, create},
};

/// Of each text.
const TIMES: usize = 7;
/// Larger texts of a kind are not tried.
const MOST: usize = 2_100;

/// A kind of text, larger and larger.
type Kind = (&'static str, fn(usize) -> String);

const KINDS: [Kind; 7] = [
    ("a list", |n| costly(0, n)),
    ("a list in 2 `if`", |n| costly(2, n)),
    ("lists in 5 `if`, an action", |n| {
        costly(5, 100).replace("action,", r#"action == Kaizen::Action::"agent.read","#).repeat(n)
    }),
    ("40 numbers in n `if`", |n| costly(n, 40)),
    ("small policies", |n| "permit (principal, action, resource) when { principal.name == \"x\" };\n".repeat(n)),
    ("unguarded attributes", |n| {
        "permit (principal, action, resource) when { principal.attributes.level > 1 };\n".repeat(n)
    }),
    ("attributes of many names", |n| {
        let one = |n| format!("permit (principal, action, resource) when {{ principal.attributes.a{n} > 1 }};\n");
        (0..n).map(one).collect()
    }),
];

#[tokio::test]
#[ignore = "takes a minute; tests/drills/policies runs it"]
async fn the_costliest_texts_that_are_accepted() {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_REQUEST_SECONDS", "600");
    let world = World::with(setup).await;
    let owner = world.tenant("acme").await.owner.client;
    let versions = format!("/api/v1/policies/{}/versions", create(&owner, EVERYTHING).await);
    heading();
    validations(&owner, &versions, EVERYTHING).await.print("a small text", "");
    for (name, text) in KINDS {
        let (mut accepted, mut refused) = (0, MOST);
        while refused - accepted > 1 {
            let size = accepted.midpoint(refused);
            match owner.post(&versions, json!({ "text": text(size) })).await.status {
                201 => accepted = size,
                422 => refused = size,
                other => panic!("{name}, {size}: {other}"),
            }
        }
        validations(&owner, &versions, &text(accepted)).await.print(name, &accepted.to_string());
    }
}

async fn validations(owner: &Client, versions: &str, text: &str) -> Answers {
    let mut answers = Answers::default();
    for _ in 0..TIMES {
        answers.ask(request(owner, Method::POST, versions).json(&json!({ "text": text }))).await;
    }
    answers
}
