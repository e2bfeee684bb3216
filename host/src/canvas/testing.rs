//! A database with one canvas, for the tests of this room.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    clock::Clock,
    domain::id::{AgentId, CanvasId, OrganizationId, UserId},
    on,
    store::{self, Store},
};

pub struct Fixture {
    pub store: Store,
    pub clock: Clock,
    pub organization: OrganizationId,
    pub agent: AgentId,
    pub canvas: CanvasId,
    pub users: [UserId; 2],
    pub _folder: tempfile::TempDir,
}

impl Fixture {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let store = Store::connect(&format!("sqlite:{}", folder.path().join("test.db").display()), 4).await.unwrap();
        store.migrate().await.unwrap();
        let this = Self {
            organization: clock.id(),
            agent: clock.id(),
            canvas: clock.id(),
            users: [clock.id(), clock.id()],
            store,
            clock,
            _folder: folder,
        };
        this.seed().await;
        this
    }

    async fn seed(&self) {
        let mut tx = self.store.begin().await.unwrap();
        let (now, workspace): (_, Uuid) = (self.clock.now(), self.clock.id());
        let organization = "INSERT INTO organizations (id, name, created_at, updated_at) VALUES ($1, 'o', $2, $2)";
        on!(&mut tx, |c| sqlx::query(organization).bind(self.organization).bind(now).execute(c).await.map(drop))
            .unwrap();
        store::audit::begin_chain(&mut tx, self.organization).await.unwrap();
        for user in self.users {
            let sql = "INSERT INTO users (id, organization_id, email, name, active, platform_administrator, attributes, created_at, updated_at)
                       VALUES ($1, $2, $3, 'n', TRUE, FALSE, '{}', $4, $4)";
            let email = format!("{user}@example.com");
            on!(&mut tx, |c| sqlx::query(sql)
                .bind(user)
                .bind(self.organization)
                .bind(email)
                .bind(now)
                .execute(c)
                .await
                .map(drop))
            .unwrap();
        }
        let sql = "INSERT INTO workspaces (id, organization_id, name, description, created_at, updated_at) VALUES ($1, $2, 'w', '', $3, $3)";
        on!(&mut tx, |c| sqlx::query(sql).bind(workspace).bind(self.organization).bind(now).execute(c).await.map(drop))
            .unwrap();
        let sql = "INSERT INTO agents (id, organization_id, workspace_id, name, description, labels, settings, canvas_id, created_by, created_at, updated_at)
                   VALUES ($1, $2, $3, 'a', '', '{}', '{}', $4, $5, $6, $6)";
        on!(&mut tx, |c| sqlx::query(sql)
            .bind(self.agent)
            .bind(self.organization)
            .bind(workspace)
            .bind(self.canvas)
            .bind(self.users[0])
            .bind(now)
            .execute(c)
            .await
            .map(drop))
        .unwrap();
        tx.commit().await.unwrap();
    }

    /// Action, actor and details of every audit event.
    pub async fn audited(&self) -> Vec<(String, String, Value)> {
        let mut conn = self.store.read().await.unwrap();
        let events = store::audit::after(&mut conn, self.organization, 0, 1000).await.unwrap();
        events.into_iter().map(|e| (e.action, e.actor, serde_json::from_str(&e.details).unwrap())).collect()
    }
}

/// A message that puts a node.
pub fn put(id: &str, x: i64) -> Value {
    json!([{ "op": "node.put", "node": { "id": id, "position": { "x": x, "y": 0 } } }])
}
