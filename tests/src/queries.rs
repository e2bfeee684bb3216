//! Query parameters that a route does not know, or is given twice, are refused: on every route of the OpenAPI document.

use reqwest::Method;

use crate::{
    harness::{Backend, Canvas, World, id},
    isolation::{Operation, operations},
};

/// Routes that do not answer 422, and why.
const EXEMPT: &[(&str, &str)] = &[
    ("/auth/sso/callback", "RFC 6749, section 4.1.2: what is not recognized in a provider's answer is ignored"),
    (
        "/auth/sso/{connection_id}/login",
        "OpenID Connect Core 1.0, section 4: a provider that sends people here adds `iss` and others",
    ),
    ("/ws/canvas/{session_id}", "it closes with 1008 once it is open: browsers cannot read why an upgrade failed"),
];

fn exemption(operation: &Operation) -> Option<&'static str> {
    EXEMPT.iter().find(|(path, _)| *path == operation.path).map(|(_, why)| *why)
}

#[tokio::test]
async fn what_a_route_does_not_know_is_refused_once_the_caller_is_known() {
    let world = World::start(Backend::Sqlite).await;
    let tenant = world.tenant("acme").await;
    let (owner, nobody) = (&tenant.owner, world.client());
    let mut exempt = 0;
    for operation in operations(owner).await {
        let Operation { method, body, query, public, .. } = &operation;
        let path = operation.path_of_nothing();
        let asked = format!("{path}?nonsense=1");
        let answer = owner.request(method.clone(), &asked, body.clone(), &[]).await;
        if let Some(why) = exemption(&operation) {
            assert_ne!(answer.status, 422, "{path}: {why}");
            exempt += 1;
            continue;
        }
        let fault = answer.fault("nonsense");
        assert!(fault.starts_with("unknown query parameter; "), "{method} {path}: {fault}");
        for name in query {
            assert!(fault.contains(name), "{method} {path}: {fault}");
            let twice = format!("{path}?{name}=1&{name}=1");
            let fault = owner.request(method.clone(), &twice, body.clone(), &[]).await.fault(name);
            assert!(fault.contains("more than once"), "{method} {path}: {fault}");
        }
        // Authentication comes first, where there is any.
        let answer = nobody.request(method.clone(), &asked, body.clone(), &[]).await;
        if *public {
            answer.fault("nonsense");
        } else {
            answer.problem(401, "unauthenticated");
        }
    }
    assert_eq!(exempt, EXEMPT.len());
    // Signing out was among what was refused.
    owner.get("/api/v1/auth/me").await.ok(200);
}

#[tokio::test]
async fn a_misspelt_parameter_is_named_with_the_one_that_was_meant() {
    let world = World::start(Backend::Sqlite).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let problem = tenant.owner.get("/api/v1/agents?limt=5").await.problem(422, "invalid");
    assert_eq!(problem["detail"], "limt: unknown query parameter; did you mean `limit`?");
    let fault = tenant.owner.get(&format!("/api/v1/agents?workspace={workspace}")).await.fault("workspace");
    assert!(fault.ends_with("did you mean `workspace_id`?"), "{fault}");
    let agent = tenant.agent(&workspace, "helper").await;
    let fault = tenant.owner.delete(&format!("/api/v1/agents/{}?force=true", id(&agent))).await.fault("force");
    assert!(fault.ends_with("this route takes none"), "{fault}");
    tenant.owner.get(&format!("/api/v1/agents/{}", id(&agent))).await.ok(200);
    let canvas = agent["canvas_id"].as_str().expect("an id");
    let mut socket = Canvas::open(&tenant.owner, canvas, "?sinse=4").await.expect("opens");
    assert_eq!(socket.closed().await, 1008);
}

#[tokio::test]
async fn a_page_of_no_size_has_one_answer_on_every_list() {
    let world = World::start(Backend::Sqlite).await;
    let tenant = world.tenant("acme").await;
    let lists =
        operations(&tenant.owner).await.into_iter().filter(|operation| operation.query.iter().any(|q| q == "limit"));
    let mut walked = 0;
    for list in lists {
        assert_eq!(list.method, Method::GET);
        for limit in ["0", "201", "70000", "-1", "1.5", "many", "", "%00"] {
            let fault = tenant.owner.get(&format!("{}?limit={limit}", list.path_of_nothing())).await.fault("limit");
            assert!(fault.contains("1 to 200") || limit == "%00", "{}: {fault}", list.path);
        }
        walked += 1;
    }
    assert!(walked >= 10, "only {walked} lists");
    for (query, name) in
        [("deployments?agent_id=x", "agent_id"), ("jobs?state=x", "state"), ("audit/events?since=x", "since")]
    {
        tenant.owner.get(&format!("/api/v1/{query}")).await.fault(name);
    }
}
