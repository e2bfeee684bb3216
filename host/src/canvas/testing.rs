//! A database with one canvas, for the tests of this room.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    audit::{self, Record},
    clock::Clock,
    domain::{
        audit::Outcome,
        id::{AgentId, CanvasId, OrganizationId, UserId},
        role::Role,
    },
    on,
    store::{self, Store, Tx},
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
        let store = Store::connect(&format!("sqlite:{}", folder.path().join("test.db").display()), &Default::default())
            .await
            .unwrap();
        store.migrate().await.unwrap();
        Self::within(store, folder).await
    }

    /// In a database that is there already.
    pub async fn within(store: Store, folder: tempfile::TempDir) -> Self {
        let clock = Clock::system();
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

    /// Gives a user a role in the whole organization, told in the audit trail as every change is.
    pub async fn grant(&self, user: usize, role: Role) {
        let sql = "INSERT INTO memberships (id, organization_id, user_id, role, created_at, updated_at)
                   VALUES ($1, $2, $3, $4, $5, $5)";
        let mut tx = self.store.begin().await.unwrap();
        on!(&mut tx, |c| sqlx::query(sql)
            .bind(self.clock.id::<Uuid>())
            .bind(self.organization)
            .bind(self.users[user])
            .bind(role)
            .bind(self.clock.now())
            .execute(c)
            .await
            .map(drop))
        .unwrap();
        self.tell(tx, "membership.create").await;
    }

    /// Takes a user's roles.
    pub async fn revoke(&self, user: usize) {
        self.change("DELETE FROM memberships WHERE organization_id = $1 AND user_id = $2", user, "membership.delete")
            .await;
    }

    /// Lets a user sign in no more.
    pub async fn disable(&self, user: usize) {
        self.change("UPDATE users SET active = FALSE WHERE organization_id = $1 AND id = $2", user, "user.update")
            .await;
    }

    async fn change(&self, sql: &'static str, user: usize, action: &str) {
        let mut tx = self.store.begin().await.unwrap();
        on!(&mut tx, |c| sqlx::query(sql).bind(self.organization).bind(self.users[user]).execute(c).await.map(drop))
            .unwrap();
        self.tell(tx, action).await;
    }

    async fn tell(&self, mut tx: Tx, action: &str) {
        let record = Record {
            organization_id: self.organization,
            actor: "system".into(),
            action,
            target: "test".into(),
            outcome: Outcome::Success,
            details: json!({}),
        };
        audit::record(&mut tx, &self.clock, record).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// A ticket for a user.
    pub async fn ticket(&self, user: usize) -> String {
        let ticket: String = self.clock.id::<Uuid>().to_string();
        let now = self.clock.now();
        let row = store::canvas::Ticket {
            organization_id: self.organization,
            canvas_id: self.canvas,
            user_id: self.users[user],
            session_id: None,
        };
        let mut tx = self.store.begin().await.unwrap();
        let expires_at = now + chrono::TimeDelta::seconds(30);
        store::canvas::issue_ticket(&mut tx, &Sha256::digest(&ticket), &row, now, expires_at).await.unwrap();
        tx.commit().await.unwrap();
        ticket
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
