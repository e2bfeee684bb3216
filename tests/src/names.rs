//! Names that people and policies compare: one spelling at every door, and refusals that name the character.

use serde_json::{Value, json};

use crate::harness::{Backend, Gateway, PASSWORD, Setup, World, agent, id};

on_both!(names_have_one_spelling, what_cannot_be_told_apart_is_refused, who_may_comes_before_what_is_wrong);

async fn names_have_one_spelling(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let owner = &tenant.owner;
    let made = owner.create("/api/v1/workspaces", json!({ "name": "  Cafe\u{301}   noir " })).await;
    assert_eq!(made["name"], "Café noir");
    for twin in ["Café noir", "Cafe\u{301} noir", "Café  noir"] {
        owner.post("/api/v1/workspaces", json!({ "name": twin })).await.problem(409, "conflict");
    }
    for good in
        ["Владимир", "Ελένη", "王小明", "محمد", "نیم\u{200c}روز", "Nguyễn Thị Ánh", "\u{1f469}\u{200d}\u{1f4bb}"]
    {
        owner.create("/api/v1/workspaces", json!({ "name": good })).await;
    }
    let mut body = agent(&id(&made), "helper");
    body["labels"] = json!({ "team": " Zoe\u{308} " });
    assert_eq!(owner.create("/api/v1/agents", body).await["labels"]["team"], "Zoë");
    let attributes = json!({ "desk": " Cafe\u{301} ", "teams": ["a  b"] });
    let new = json!({ "email": "zoe@acme.test", "name": "Zoe\u{308}", "attributes": attributes });
    let zoe = owner.create("/api/v1/users", new).await;
    assert_eq!((&zoe["name"], &zoe["attributes"]), (&json!("Zoë"), &json!({ "desk": "Café", "teams": ["a b"] })));

    // A name that a server before let in is not in the way of other changes.
    let mut direct = world.setup.database.direct().await;
    assert_eq!(direct.execute("UPDATE users SET name = 'Zo\u{200b}e' WHERE email = 'zoe@acme.test'").await, 1);
    owner.patch(&format!("/api/v1/users/{}", id(&zoe)), json!({ "active": false })).await.ok(200);
}

async fn what_cannot_be_told_apart_is_refused(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let operator = world.operator().await;
    let owner = &tenant.owner;
    let workspace = tenant.workspace("first").await;
    let gateway = Gateway::start().await;
    let set = id(&owner.create("/api/v1/policies", json!({ "name": "house rules" })).await);
    let one = id(&owner.create("/api/v1/agents", agent(&workspace, "helper")).await);
    let place = |what: &str, name: &str| -> (String, Value) {
        let mut body = match what {
            "agents" => agent(&workspace, ""),
            "gateways" => gateway.body(""),
            "users" => json!({ "email": "new@acme.test", "password": PASSWORD }),
            _ => json!({}),
        };
        body["name"] = name.into();
        (format!("/api/v1/{what}"), body)
    };
    for (odd, code) in [
        ("\u{200b}", "U+200B"),
        ("ad\u{202e}min", "U+202E"),
        ("\u{feff}admin", "U+FEFF"),
        ("ad\u{2066}min", "U+2066"),
        ("ad\u{fffe}min", "U+FFFE"),
        ("ad\u{ad}min", "U+00AD"),
        ("ad\u{e0041}min", "U+E0041"),
        ("ad\u{2028}min", "U+2028"),
        ("ad\u{a0}min", "U+00A0"),
        ("adm\u{456}n", "U+0456"),
    ] {
        for what in ["workspaces", "agents", "users", "gateways", "policies"] {
            let (path, body) = place(what, odd);
            let why = owner.post(&path, body).await.fault("/name");
            assert!(why.contains(code), "{what}: {why}");
        }
        for path in [
            format!("/api/v1/organizations/{}", tenant.id),
            format!("/api/v1/workspaces/{workspace}"),
            format!("/api/v1/agents/{one}"),
            format!("/api/v1/policies/{set}"),
            format!("/api/v1/users/{}", owner.id),
        ] {
            let why = owner.patch(&path, json!({ "name": odd })).await.fault("/name");
            assert!(why.contains(code), "{path}: {why}");
        }
        let why = owner.patch(&format!("/api/v1/agents/{one}"), json!({ "labels": { "team": odd } })).await;
        assert!(why.fault("/labels/team").contains(code));
        let user = format!("/api/v1/users/{}", owner.id);
        let why = owner.patch(&user, json!({ "attributes": { "team": odd } })).await.fault("/attributes/team");
        assert!(why.contains(code), "{why}");
        let new = json!({ "name": odd, "owner": { "email": "new@new.test", "password": PASSWORD } });
        assert!(operator.owner.post("/api/v1/organizations", new).await.fault("/name").contains(code));
        let new = json!({ "name": "new", "owner": { "email": "new@new.test", "name": odd, "password": PASSWORD } });
        assert!(operator.owner.post("/api/v1/organizations", new).await.fault("/owner/name").contains(code));
    }
}

async fn who_may_comes_before_what_is_wrong(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let eve = tenant.person("eve", "viewer").await;
    let gateway = Gateway::start().await;
    let one = id(&tenant.agent(&workspace, "helper").await);
    let gateway_id = tenant.gateway(&gateway, "west").await;
    let body = |mut body: Value| {
        body["name"] = "".into();
        body
    };
    for (path, wrong) in [
        ("/api/v1/workspaces", body(json!({}))),
        ("/api/v1/agents", body(agent(&workspace, ""))),
        ("/api/v1/users", body(json!({ "email": "new@acme.test", "password": "short", "attributes": { "a": null } }))),
        ("/api/v1/gateways", body(gateway.body(""))),
        ("/api/v1/policies", body(json!({}))),
    ] {
        eve.post(path, wrong.clone()).await.problem(403, "denied");
        tenant.owner.post(path, wrong).await.fault("/name");
    }
    for path in [
        format!("/api/v1/organizations/{}", tenant.id),
        format!("/api/v1/workspaces/{workspace}"),
        format!("/api/v1/agents/{one}"),
        format!("/api/v1/gateways/{gateway_id}"),
        format!("/api/v1/users/{}", tenant.owner.id),
    ] {
        eve.patch(&path, json!({ "name": "" })).await.problem(403, "denied");
        tenant.owner.patch(&path, json!({ "name": "" })).await.fault("/name");
    }
    eve.post(&format!("/api/v1/agents/{one}/versions"), json!({ "note": "x".repeat(5000) }))
        .await
        .problem(403, "denied");
    // Whether a gateway is switched off is not for who may not deploy.
    tenant.owner.patch(&format!("/api/v1/gateways/{gateway_id}"), json!({ "active": false })).await.ok(200);
    let deploy = format!("/api/v1/agents/{one}/deploy");
    eve.post(&deploy, json!({ "gateway_id": gateway_id })).await.problem(403, "denied");
    tenant.owner.post(&deploy, json!({ "gateway_id": gateway_id })).await.problem(409, "conflict");
}

#[tokio::test]
async fn the_command_line_names_the_character_too() {
    let setup = Setup::new(Backend::Sqlite).await;
    let create = |name: &'static str, person: &'static str| {
        let args = ["admin", "create-organization", "--name", name, "--owner", "ada@acme.test", "--owner-name", person];
        [args.as_slice(), &["--password-stdin"]].concat()
    };
    for (name, person, flag, code) in [
        ("Ac\u{200b}me", "Ada", "--name", "U+200B"),
        ("\u{410}cme", "Ada", "--name", "U+0410"),
        ("Acme", "A\u{202e}da", "--owner-name", "U+202E"),
    ] {
        let ran = setup.run(&create(name, person), &format!("{PASSWORD}\n")).await;
        assert!(!ran.status.success() && ran.stderr.contains(flag) && ran.stderr.contains(code), "{}", ran.stderr);
    }
    let made = setup.run(&create(" Acme ", "Zoe\u{308}"), &format!("{PASSWORD}\n")).await;
    assert!(made.status.success(), "{}", made.stderr);
}
