//! For tests: a tenant with an agent, a version and a gateway, in a database of its own.

use std::{collections::BTreeMap, path::Path, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::enqueue;
use crate::{
    app::App,
    clock::Clock,
    config::Config,
    domain::{
        deployment::{Deployment, DeploymentState, Progress},
        id::{AgentId, AuditSinkId, DeploymentId, GatewayId, JobId, OrganizationId, UserId, VersionId, WorkspaceId},
        job::{Job, JobKind, Payload},
    },
    on,
    plugins::{Ingredients, Plugins},
    sandbox::cache::Cache,
    store::{self, Store, Tx, fixture::Database},
};

/// One tenant's things.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tenant {
    pub(crate) organization: OrganizationId,
    pub(crate) user: UserId,
    workspace: WorkspaceId,
    agent: AgentId,
    version: VersionId,
    pub(crate) gateway: GatewayId,
}

/// A fresh database.
pub(crate) struct Fixture {
    pub(crate) store: Store,
    database: Database,
}

impl Fixture {
    /// On each kind of database.
    pub(crate) async fn each() -> Vec<Self> {
        Database::each().await.into_iter().map(Self::at).collect()
    }

    /// As [`Database::each_after`].
    pub(crate) async fn each_after(migration: i64) -> Vec<Self> {
        Database::each_after(migration).await.into_iter().map(Self::at).collect()
    }

    pub(crate) async fn sqlite() -> Self {
        Self::at(Database::sqlite().await)
    }

    fn at(database: Database) -> Self {
        Self { store: database.store.clone(), database }
    }

    /// As in `database_url`.
    pub(crate) fn url(&self) -> &str {
        &self.database.url
    }

    /// Everything a worker needs, on the same database; without plugins, whose compilation takes seconds.
    pub(crate) async fn app(&self) -> App {
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let settings = [
            set("database_url", &self.database.url),
            set("data_dir", self.database.folder.path().to_str().unwrap()),
            set("job_lease_seconds", "1"),
            set("jobs_waiting_per_organization", "2"),
        ];
        let config = Config::load(None::<&Path>, [], settings).unwrap();
        let plugins = async |from: Ingredients<'_>| {
            let cache = Cache::new(from.config.data_dir.join("compiled"), &from.secrets.derive("tests"));
            Plugins::install(Vec::new(), cache, from.egress, BTreeMap::new()).await
        };
        App::with(config, Clock::system(), plugins).await.unwrap()
    }

    pub(crate) async fn tenant(&self) -> Tenant {
        let clock = Clock::system();
        let now = clock.now();
        let tenant = Tenant {
            organization: clock.id(),
            user: clock.id(),
            workspace: clock.id(),
            agent: clock.id(),
            version: clock.id(),
            gateway: clock.id(),
        };
        let mut tx = self.store.begin().await.unwrap();
        insert(
            &mut tx,
            "organizations (id, name, created_at, updated_at) VALUES ($1, 'Acme', $2, $2)",
            tenant.organization.0,
            now,
            &[],
        )
        .await;
        store::audit::begin_chain(&mut tx, tenant.organization).await.unwrap();
        let organization = tenant.organization.0;
        insert(
            &mut tx,
            "users (id, organization_id, email, name, active, platform_administrator, attributes, created_at, updated_at)
             VALUES ($1, $3, 'a@acme.example', 'A', TRUE, FALSE, '{}', $2, $2)",
            tenant.user.0,
            now,
            &[organization],
        )
        .await;
        insert(
            &mut tx,
            "workspaces (id, organization_id, name, description, created_at, updated_at) VALUES ($1, $3, 'W', '', $2, $2)",
            tenant.workspace.0,
            now,
            &[organization],
        )
        .await;
        insert(
            &mut tx,
            "agents (id, organization_id, workspace_id, name, description, labels, settings, canvas_id, created_by, created_at, updated_at)
             VALUES ($1, $3, $4, 'Agent', '', '{}', '{}', $1, $5, $2, $2)",
            tenant.agent.0,
            now,
            &[organization, tenant.workspace.0, tenant.user.0],
        )
        .await;
        insert(
            &mut tx,
            "agent_versions (id, organization_id, agent_id, number, digest, workflow, note, created_by, created_at)
             VALUES ($1, $3, $4, 1, 'd', '{}', '', $5, $2)",
            tenant.version.0,
            now,
            &[organization, tenant.agent.0, tenant.user.0],
        )
        .await;
        tx.commit().await.unwrap();
        // Switched off: a deployment to it fails without any plugin.
        self.connection(tenant.organization, tenant.gateway.0, false, now).await;
        tenant
    }

    pub(crate) async fn sink(&self, tenant: &Tenant) -> AuditSinkId {
        let clock = Clock::system();
        let id: AuditSinkId = clock.id();
        self.connection(tenant.organization, id.0, true, clock.now()).await;
        id
    }

    /// An inactive gateway, or an active sink.
    async fn connection(&self, organization: OrganizationId, id: Uuid, sink: bool, now: DateTime<Utc>) {
        let mut tx = self.store.begin().await.unwrap();
        let columns = if sink {
            &format!(
                "connections (id, organization_id, kind, name, plugin, config, secrets, secret_names, labels, active, created_at, updated_at)
             VALUES ($1, $3, 'audit_sink', '{id}', 'file', '{{}}', '', '[]', '{{}}', TRUE, $2, $2)"
            )
        } else {
            "connections (id, organization_id, kind, name, plugin, config, secrets, secret_names, labels, active, created_at, updated_at)
             VALUES ($1, $3, 'deployment_target', 'G', 'nexus', '{}', '', '[]', '{}', FALSE, $2, $2)"
        };
        insert(&mut tx, columns, id, now, &[organization.0]).await;
        tx.commit().await.unwrap();
    }

    /// A deployment in this state with the job that is to do it.
    pub(crate) async fn deployment(
        &self,
        tenant: &Tenant,
        status: DeploymentState,
        kind: JobKind,
    ) -> (Deployment, JobId) {
        let clock = Clock::system();
        let now = clock.now();
        let mut tx = self.store.begin().await.unwrap();
        let id: DeploymentId = clock.id();
        let job_id = enqueue(&mut tx, &clock, tenant.organization, kind, Payload { deployment_id: id }).await.unwrap();
        let deployment = Deployment {
            id,
            organization_id: tenant.organization,
            agent_id: tenant.agent,
            agent_name: "Agent".to_owned(),
            workspace_id: tenant.workspace,
            version: 1,
            version_id: tenant.version,
            gateway_id: tenant.gateway,
            environment: "staging".to_owned(),
            status,
            job_id,
            registration_id: None,
            endpoint: None,
            progress: Progress::default(),
            error: None,
            rollback_of: None,
            created_by: tenant.user,
            created_at: now,
            updated_at: now,
            activated_at: None,
            finished_at: None,
        };
        store::deployments::insert(&mut tx, &deployment).await.unwrap();
        tx.commit().await.unwrap();
        (deployment, job_id)
    }

    pub(crate) async fn seen(&self, deployment: &Deployment) -> Deployment {
        let mut conn = self.store.read().await.unwrap();
        store::deployments::get(&mut conn, deployment.organization_id, deployment.id).await.unwrap().unwrap()
    }

    pub(crate) async fn job(&self, tenant: &Tenant, id: JobId) -> Job {
        store::jobs::get(&mut self.store.read().await.unwrap(), tenant.organization, id).await.unwrap().unwrap()
    }

    /// The actions in the tenant's audit trail.
    pub(crate) async fn trail(&self, tenant: &Tenant) -> Vec<(String, String)> {
        let mut conn = self.store.read().await.unwrap();
        let events = store::audit::after(&mut conn, tenant.organization, 0, 100).await.unwrap();
        events.into_iter().map(|event| (event.action, event.outcome.as_str().to_owned())).collect()
    }
}

async fn insert(tx: &mut Tx, into: &str, id: Uuid, now: DateTime<Utc>, more: &[Uuid]) {
    let sql = format!("INSERT INTO {into}");
    on!(tx, |c| {
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).bind(now);
        for id in more {
            query = query.bind(*id);
        }
        query.execute(c).await.map(drop)
    })
    .unwrap();
}

/// Waits until `is` holds, at most ten seconds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut is: impl FnMut() -> F) {
    for _ in 0..200 {
        if is().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within ten seconds: {what}");
}
