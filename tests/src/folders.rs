//! Folders that the operator offers to audit sinks: whose they are, and how many.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Backend, Client, PASSWORD, Setup, Tenant, World, id};

const SINKS: &str = "/api/v1/audit-sinks";

/// A sink that writes where a folder is offered, once it is asked to.
fn archive(name: &str) -> Value {
    json!({ "name": name, "plugin": "file", "config": { "name": "events" }, "active": false })
}

async fn check(client: &Client, sink: &str) -> Answer {
    client.post(&format!("{SINKS}/{sink}/check"), json!({})).await
}

#[tokio::test]
async fn folders_of_deleted_sinks_count_until_the_operator_removes_them() {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_PLUGIN_FOLDERS_PER_ORGANIZATION", "2");
    let world = World::with(setup).await;
    let (acme, other) = (world.tenant("acme").await, world.tenant("other").await);
    let folder = |tenant: &Tenant, sink: &str| world.setup.data_dir().join("audit").join(&tenant.id).join(sink);
    let made = async |tenant: &Tenant, name: &str| {
        let sink = id(&tenant.owner.create(SINKS, archive(name)).await);
        check(&tenant.owner, &sink).await.ok(200);
        assert!(folder(tenant, &sink).is_dir());
        sink
    };
    // Created and deleted for as long as that goes, to fill the disk.
    let mut sinks = Vec::new();
    for name in ["first", "second"] {
        let sink = made(&acme, name).await;
        acme.owner.delete(&format!("{SINKS}/{sink}")).await.ok(204);
        assert!(folder(&acme, &sink).is_dir(), "what it wrote is the operator's");
        sinks.push(sink);
    }
    let refused = acme.owner.post(SINKS, archive("third")).await.problem(409, "conflict");
    let why = refused["detail"].as_str().expect("text");
    assert!(why.contains("`plugin_folders_per_organization`") && why.contains("the operator can remove"), "{why}");
    assert!(!why.contains(world.setup.dir().to_str().expect("text")), "no path of the server's: {why}");
    // What needs no folder, and other organizations, are not concerned.
    let webhook = json!({
        "name": "siem", "plugin": "webhook", "config": { "url": "http://127.0.0.1:1" }, "secrets": { "signing-key": "0123456789abcdef" },
        "active": false,
    });
    acme.owner.create(SINKS, webhook).await;
    made(&other, "first").await;

    std::fs::remove_dir_all(folder(&acme, &sinks[0])).expect("removed by the operator");
    // Two that were created while there was room for one: the second is refused when its folder would be made.
    let late = [id(&acme.owner.create(SINKS, archive("a")).await), id(&acme.owner.create(SINKS, archive("b")).await)];
    check(&acme.owner, &late[0]).await.ok(200);
    let refused = check(&acme.owner, &late[1]).await;
    assert!(refused.status == 422 && refused.text.contains("plugin_folders_per_organization"), "{refused:?}");
    assert!(!folder(&acme, &late[1]).exists());
    check(&acme.owner, &late[0]).await.ok(200);
    std::fs::remove_dir_all(folder(&acme, &sinks[1])).expect("removed by the operator");
    check(&acme.owner, &late[1]).await.ok(200);
}

#[tokio::test]
async fn a_create_that_is_repeated_is_answered_as_before_when_its_folder_took_the_last_room() {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_PLUGIN_FOLDERS_PER_ORGANIZATION", "1");
    let world = World::with(setup).await;
    let owner = world.tenant("acme").await.owner;
    let create =
        async || owner.request(Method::POST, SINKS, Some(archive("first")), &[("idempotency-key", "once")]).await;
    let created = create().await.ok(201);
    check(&owner, &id(&created)).await.ok(200);
    let again = create().await;
    assert_eq!(again.header("idempotency-replayed"), "true", "{again:?}");
    assert_eq!(again.ok(201), created);
    owner.post(SINKS, archive("second")).await.problem(409, "conflict");
}

#[tokio::test]
async fn a_disk_in_trouble_is_told_to_the_operator_and_not_as_a_fault_of_the_sink() {
    let world = World::start(Backend::Sqlite).await;
    let tenant = world.tenant("acme").await;
    let sink = id(&tenant.owner.create(SINKS, archive("first")).await);
    // Where the organization's folder is to be made lies a file.
    let folder = world.setup.data_dir().join("audit");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join(&tenant.id), "").expect("written");
    let refused = tenant.owner.post(SINKS, archive("second")).await;
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    let told = [refused.problem(503, "unavailable"), check(&tenant.owner, &sink).await.problem(502, "upstream")];
    let path = world.setup.data_dir().display().to_string();
    for told in told {
        assert!(told.to_string().contains("`audit`") && !told.to_string().contains(&path), "{told}");
    }
    assert!(world.server.log().contains(&path), "the operator is told where");
    std::fs::remove_file(folder.join(&tenant.id)).expect("removed");
    check(&tenant.owner, &sink).await.ok(200);
    tenant.owner.create(SINKS, archive("second")).await;
}

#[tokio::test]
async fn folders_are_for_the_organizations_that_the_operator_names() {
    let world = World::start(Backend::Sqlite).await;
    let (named, other) = (world.tenant("named").await, world.tenant("other").await);
    let server = world.setup.start_beside_with(&[("KAIZEN_AUDIT_DIR_ORGANIZATIONS", &named.id)]).await;
    for (tenant, offered) in [(&named, true), (&other, false)] {
        let owner = Client::new(&server.url).login(&tenant.owner.email, PASSWORD).await;
        let sink = id(&owner.create(SINKS, archive("archive")).await);
        let checked = check(&owner, &sink).await;
        if offered {
            checked.ok(200);
        } else {
            assert!(
                checked.status == 422 && checked.text.contains("not offered by this server's operator"),
                "{checked:?}"
            );
        }
        assert_eq!(world.setup.data_dir().join("audit").join(&tenant.id).exists(), offered);
    }
}
