//! Names that people and policies compare: one spelling at every door, and refusals that name the character.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Backend, Gateway, PASSWORD, Setup, Tenant, World, agent, id},
    identities::{Company, connect},
};

on_both!(
    names_have_one_spelling,
    what_cannot_be_told_apart_is_refused,
    what_imitates_ascii_is_refused_where_policies_compare_it,
    who_may_comes_before_what_is_wrong,
);

/// One of each thing that has a name and can be changed, but for users.
struct Things {
    workspace: String,
    agent: String,
    gateway: String,
    all: Vec<String>,
}

impl Things {
    async fn of(tenant: &Tenant) -> Self {
        let owner = &tenant.owner;
        let workspace = tenant.workspace("first").await;
        let agent = id(&tenant.agent(&workspace, "helper").await);
        let gateway = tenant.gateway(&Gateway::start().await, "west").await;
        let set = id(&owner.create("/api/v1/policies", json!({ "name": "house rules" })).await);
        let sink = json!({
            "name": "siem", "plugin": "webhook", "config": { "url": "https://siem.example.com" },
            "secrets": { "signing-key": "s" }, "active": false,
        });
        let sink = id(&owner.create("/api/v1/audit-sinks", sink).await);
        let provider = connect(tenant, "company", "https://id.example.com", json!({})).await;
        let all = vec![
            format!("/api/v1/organizations/{}", tenant.id),
            format!("/api/v1/workspaces/{workspace}"),
            format!("/api/v1/agents/{agent}"),
            format!("/api/v1/gateways/{gateway}"),
            format!("/api/v1/audit-sinks/{sink}"),
            format!("/api/v1/identity-connections/{provider}"),
            format!("/api/v1/policies/{set}"),
        ];
        Self { workspace, agent, gateway, all }
    }
}

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
    let things = Things::of(&tenant).await;
    let gateway = Gateway::start().await;
    let place = |what: &str, name: &str| -> (String, Value) {
        let mut body = match what {
            "agents" => agent(&things.workspace, ""),
            "gateways" => gateway.body(""),
            "users" => json!({ "email": "new@acme.test", "password": PASSWORD }),
            "audit-sinks" => json!({ "plugin": "webhook" }),
            "identity-connections" => json!({ "plugin": "oidc" }),
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
        for what in ["workspaces", "agents", "users", "gateways", "policies", "audit-sinks", "identity-connections"] {
            let (path, body) = place(what, odd);
            let why = owner.post(&path, body).await.fault("/name");
            assert!(why.contains(code), "{what}: {why}");
        }
        let user = format!("/api/v1/users/{}", owner.id);
        for path in things.all.iter().chain([&user]) {
            let why = owner.patch(path, json!({ "name": odd })).await.fault("/name");
            assert!(why.contains(code), "{path}: {why}");
        }
        for labelled in [format!("/api/v1/agents/{}", things.agent), format!("/api/v1/gateways/{}", things.gateway)] {
            let why = owner.patch(&labelled, json!({ "labels": { "team": odd } })).await.fault("/labels/team");
            assert!(why.contains(code), "{labelled}: {why}");
        }
        let gateway = format!("/api/v1/gateways/{}", things.gateway);
        let why = owner.patch(&gateway, json!({ "environment": odd })).await.fault("/environment");
        assert!(why.contains(code), "{why}");
        let why = owner.patch(&user, json!({ "attributes": { "team": odd } })).await.fault("/attributes/team");
        assert!(why.contains(code), "{why}");
        let new = json!({ "name": odd, "owner": { "email": "new@new.test", "password": PASSWORD } });
        assert!(operator.owner.post("/api/v1/organizations", new).await.fault("/name").contains(code));
        let new = json!({ "name": "new", "owner": { "email": "new@new.test", "name": odd, "password": PASSWORD } });
        assert!(operator.owner.post("/api/v1/organizations", new).await.fault("/owner/name").contains(code));
    }
}

/// Each letter in one script, and each like one of ASCII.
async fn what_imitates_ascii_is_refused_where_policies_compare_it(backend: Backend) {
    let company = Company::start(backend, json!({ "default_role": "viewer" })).await;
    let (tenant, owner) = (&company.tenant, &company.tenant.owner);
    let workspace = tenant.workspace("first").await;
    let gateway = Gateway::start().await;
    let agents = id(&tenant.agent(&workspace, "helper").await);
    let gateways = tenant.gateway(&gateway, "west").await;
    let with = |mut body: Value, value: Value| {
        body.as_object_mut().expect("a body").extend(value.as_object().expect("an object").clone());
        body
    };
    for (imitation, plain) in [("\u{501}\u{435}\u{475}", "dev"), ("\u{3C1}\u{3BF}", "po")] {
        let labels = json!({ "labels": { "tier": imitation } });
        for refused in [
            owner.post("/api/v1/agents", with(agent(&workspace, "other"), labels.clone())).await,
            owner.post("/api/v1/gateways", with(gateway.body("east"), labels.clone())).await,
            owner.patch(&format!("/api/v1/agents/{agents}"), labels.clone()).await,
            owner.patch(&format!("/api/v1/gateways/{gateways}"), labels.clone()).await,
        ] {
            let why = refused.fault("/labels/tier");
            assert!(why.ends_with(&format!("write `{plain}`")), "{why}");
        }
        for attributes in [json!({ "tier": imitation }), json!({ "tier": ["prod", imitation] })] {
            let attributes = json!({ "attributes": attributes });
            let new = with(json!({ "email": "new@acme.test", "name": "New" }), attributes.clone());
            owner.post("/api/v1/users", new).await.fault("/attributes/tier");
            owner.patch(&format!("/api/v1/users/{}", owner.id), attributes).await.fault("/attributes/tier");
        }
        let environment = json!({ "environment": imitation });
        owner.patch(&format!("/api/v1/gateways/{gateways}"), environment).await.fault("/environment");
    }
    // Words of a language stay, also where one of them could be ASCII's; so does people's punctuation.
    for team in ["работа с клиентами", "Yazılım", "Næstved", "cœur"] {
        let labels = json!({ "labels": { "team": team } });
        owner.patch(&format!("/api/v1/agents/{agents}"), labels.clone()).await.ok(200);
        owner.patch(&format!("/api/v1/gateways/{gateways}"), labels).await.ok(200);
    }
    let attributes =
        json!({ "attributes": { "team": "отдел", "boss": "O\u{2019}Brien", "name": "Ελένη", "town": "Þorlákshöfn" } });
    owner.patch(&format!("/api/v1/users/{}", owner.id), attributes).await.ok(200);
}

async fn who_may_comes_before_what_is_wrong(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let eve = tenant.person("eve", "viewer").await;
    let gateway = Gateway::start().await;
    let things = Things::of(&tenant).await;
    let body = |mut body: Value| {
        body["name"] = "".into();
        body
    };
    for (path, wrong) in [
        ("/api/v1/workspaces", body(json!({}))),
        ("/api/v1/agents", body(agent(&things.workspace, ""))),
        ("/api/v1/users", body(json!({ "email": "new@acme.test", "password": "short", "attributes": { "a": null } }))),
        ("/api/v1/gateways", body(gateway.body(""))),
        ("/api/v1/policies", body(json!({}))),
    ] {
        eve.post(path, wrong.clone()).await.problem(403, "denied");
        tenant.owner.post(path, wrong).await.fault("/name");
    }
    // Then whether it is still what was read, then what is wrong.
    let user = format!("/api/v1/users/{}", tenant.owner.id);
    let stale = [("if-match", "\"999\"")];
    for path in things.all.iter().chain([&user]) {
        let wrong = json!({ "name": "" });
        eve.patch(path, wrong.clone()).await.problem(403, "denied");
        eve.request(Method::PATCH, path, Some(wrong.clone()), &stale).await.problem(403, "denied");
        let newer = tenant.owner.request(Method::PATCH, path, Some(wrong.clone()), &stale).await;
        newer.problem(412, "precondition_failed");
        tenant.owner.patch(path, wrong).await.fault("/name");
    }
    let wrong =
        json!({ "labels": { "": "" }, "environment": "", "config": { "nothing": 1 }, "plugin_version": "9.9.9" });
    eve.patch(&format!("/api/v1/gateways/{}", things.gateway), wrong).await.problem(403, "denied");
    let wrong = json!({ "labels": { "": "" }, "settings": { "temperature": 3 } });
    eve.patch(&format!("/api/v1/agents/{}", things.agent), wrong).await.problem(403, "denied");
    let wrong = json!({ "attributes": { "a": null }, "password": "short" });
    eve.patch(&user, wrong).await.problem(403, "denied");
    let membership = id(&tenant.owner.all("/api/v1/memberships").await[0]);
    let role = Some(json!({ "role": "owner" }));
    let path = format!("/api/v1/memberships/{membership}");
    eve.request(Method::PATCH, &path, role.clone(), &stale).await.problem(403, "denied");
    tenant.owner.request(Method::PATCH, &path, role, &stale).await.problem(412, "precondition_failed");
    eve.post(&format!("/api/v1/agents/{}/versions", things.agent), json!({ "note": "x".repeat(5000) }))
        .await
        .problem(403, "denied");
    // Whether a gateway is switched off is not for who may not deploy.
    tenant.owner.patch(&format!("/api/v1/gateways/{}", things.gateway), json!({ "active": false })).await.ok(200);
    let deploy = format!("/api/v1/agents/{}/deploy", things.agent);
    eve.post(&deploy, json!({ "gateway_id": things.gateway })).await.problem(403, "denied");
    tenant.owner.post(&deploy, json!({ "gateway_id": things.gateway })).await.problem(409, "conflict");
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
