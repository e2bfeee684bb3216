//! `kaizen admin rotate-key`: a new master key, beside a running server, and whenever it is killed.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use crate::harness::{Backend, Gateway, Server, Setup, Tenant, World, id};

on_both!(
    a_key_file_is_replaced_under_a_running_server_however_often_it_is_killed,
    a_key_in_the_settings_is_replaced_host_by_host,
);

const NEW_KEY: &str = "6e65776e65776e65776e65776e65776e65776e65776e65776e65776e65776e65";
const OTHER_KEY: &str = "6f746865726f746865726f746865726f746865726f746865726f746865726f74";

/// Gateways whose keys are sealed, and whether they can all be used.
struct Gateways {
    far: Gateway,
    ids: Vec<String>,
}

impl Gateways {
    async fn new(tenant: &Tenant, count: usize) -> Self {
        let far = Gateway::start().await;
        let mut ids = Vec::new();
        for number in 0..count {
            ids.push(tenant.gateway(&far, &format!("gateway {number}")).await);
        }
        Self { far, ids }
    }

    async fn add(&mut self, tenant: &Tenant, server: &Server, name: &str) {
        let made = tenant.owner.at(&server.url).create("/api/v1/gateways", self.far.body(name)).await;
        self.ids.push(id(&made));
    }

    async fn all_work(&self, tenant: &Tenant, server: &Server) {
        let owner = tenant.owner.at(&server.url);
        for id in &self.ids {
            owner.post(&format!("/api/v1/gateways/{id}/check"), json!({})).await.ok(200);
        }
    }
}

async fn a_key_file_is_replaced_under_a_running_server_however_often_it_is_killed(backend: Backend) {
    let mut world = World::with(Setup::new(backend).await.without("KAIZEN_MASTER_KEY")).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let mut gateways = Gateways::new(&tenant, 12).await;
    let file = world.setup.data_dir().join("master.key");
    let before = std::fs::read_to_string(&file).expect("a key file");
    let args: &[&str] = match backend {
        Backend::Sqlite => &["admin", "rotate-key"],
        Backend::Postgres => {
            let refused = world.setup.run(&["admin", "rotate-key"], "").await.refusal();
            assert!(refused.contains("--only-host") && refused.contains("KAIZEN_MASTER_KEY_ALSO"), "{refused}");
            &["admin", "rotate-key", "--only-host"]
        }
    };
    // Killed in whatever it is at.
    for step in 0..12 {
        let ended = world.setup.cut_short(args, Duration::from_millis(15 * step)).await;
        gateways.add(&tenant, &world.server, &format!("made meanwhile {step}")).await;
        if ended {
            break;
        }
    }
    let done = world.setup.run(args, "").await.json();
    assert_eq!(done["values"], json!(gateways.ids.len()), "{done}");
    gateways.all_work(&tenant, &world.server).await;
    let after = std::fs::read_to_string(&file).expect("a key file");
    assert_ne!(before, after);

    // The old key is not needed any more.
    for retired in ["master.key.retired", "master.key.previous"] {
        std::fs::remove_file(world.setup.data_dir().join(retired)).ok();
    }
    world.server.kill().await;
    world.again().await;
    gateways.all_work(&tenant, &world.server).await;
    let events = operator.owner.all("/api/v1/audit/events").await;
    let told = events.last().expect("events");
    assert_eq!((&told["action"], &told["actor"]), (&json!("master_key.rotate"), &json!("system")), "{told}");
    gateways.add(&tenant, &world.server, "made after").await;
    gateways.all_work(&tenant, &world.server).await;
}

async fn a_key_in_the_settings_is_replaced_host_by_host(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let mut gateways = Gateways::new(&tenant, 3).await;
    let refused = world.setup.run(&["admin", "rotate-key"], "").await.refusal();
    assert!(refused.contains("KAIZEN_MASTER_KEY_ALSO"), "{refused}");

    let World { mut server, setup } = world;
    server.kill().await;
    drop(server);
    let setup = Arc::into_inner(setup).expect("nobody else has it");
    // Told a key that never was: nothing opens, and it says so.
    let setup = setup.with("KAIZEN_MASTER_KEY", NEW_KEY).with("KAIZEN_MASTER_KEY_ALSO", OTHER_KEY);
    let refused = setup.run(&["admin", "rotate-key"], "").await.refusal();
    assert!(refused.contains("3 connections"), "{refused}");

    let setup = Arc::new(setup.with("KAIZEN_MASTER_KEY_ALSO", crate::harness::MASTER_KEY));
    let mut server = setup.start().await;
    gateways.all_work(&tenant, &server).await;
    gateways.add(&tenant, &server, "under the new key").await;
    let done = setup.run(&["admin", "rotate-key"], "").await.json();
    assert_eq!(done, json!({ "values": 4, "resealed": 3 }));
    assert_eq!(setup.run(&["admin", "rotate-key"], "").await.json(), json!({ "values": 4, "resealed": 0 }));
    gateways.all_work(&tenant, &server).await;

    server.kill().await;
    drop(server);
    let setup = Arc::new(Arc::into_inner(setup).expect("nobody else has it").without("KAIZEN_MASTER_KEY_ALSO"));
    let server = setup.start().await;
    gateways.all_work(&tenant, &server).await;
}
