//! The one place where the parts meet: builds every room from the settings and hands them to whoever serves or works.

use std::{ops::Deref, sync::Arc};

use anyhow::Context;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    authz::Authz,
    bus::Bus,
    canvas::{self, Canvases},
    clock::Clock,
    config::Config,
    identity::Identity,
    jobs::Jobs,
    plugins::Plugins,
    sandbox::egress,
    secrets::Secrets,
    store::Store,
};

/// Everything a request or a job needs. Cheap to clone; the state of every route.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The parts, once each.
pub struct Parts {
    /// Settings.
    pub config: Config,
    /// Time and randomness.
    pub clock: Clock,
    /// The database.
    pub store: Store,
    /// Hints between hosts.
    pub bus: Bus,
    /// Encryption at rest.
    pub secrets: Secrets,
    /// Policies.
    pub authz: Authz,
    /// Sign-in, sessions and tokens.
    pub identity: Identity,
    /// HTTP to wherever a tenant's configuration points: checked against the operator's settings.
    pub egress: egress::Client,
    /// Sandboxed providers.
    pub plugins: Plugins,
    /// Canvas rooms of this host.
    pub canvases: Canvases,
    /// Background jobs.
    pub jobs: Jobs,
    /// Cancelled when the server is asked to stop: sockets close, workers finish what they hold.
    pub stopping: CancellationToken,
    /// What must end before the process does.
    pub tasks: TaskTracker,
}

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    /// Connects, migrates, and builds every part. Starts nothing in the background.
    ///
    /// # Errors
    /// One line that names what to change.
    pub async fn build(config: Config, clock: Clock) -> anyhow::Result<Self> {
        Self::with(config, clock, Plugins::load).await
    }

    /// As [`App::build`], with plugins that come from elsewhere.
    ///
    /// # Errors
    /// One line that names what to change.
    pub async fn with<E: std::error::Error + Send + Sync + 'static>(
        config: Config,
        clock: Clock,
        plugins: impl AsyncFnOnce(&Config, &Secrets, egress::Client) -> Result<Plugins, E>,
    ) -> anyhow::Result<Self> {
        let store = connect(&config).await?;
        store.migrate().await?;
        let bus = Bus::connect(config.redis_url.as_deref(), &clock)?;
        let secrets = Secrets::load(&config, &clock)?;
        let authz = Authz::new(clock.clone())?;
        let policy =
            egress::Policy { allow: config.egress_allow.clone(), allow_private: config.egress_allow_private.clone() };
        let egress = egress::Client::new(policy, Arc::new(egress::SystemResolver));
        let plugins = plugins(&config, &secrets, egress.clone()).await?;
        let identity = Identity::new(&config, &clock, &store, &egress).await?;
        let jobs = Jobs::new();
        let stopping = CancellationToken::new();
        let tasks = TaskTracker::new();
        let canvases = Canvases::new(canvas::Parts {
            store: store.clone(),
            clock: clock.clone(),
            bus: bus.clone(),
            identity: identity.clone(),
            authz: authz.clone(),
            stopping: stopping.clone(),
            tasks: tasks.clone(),
        });
        Ok(Self(Arc::new(Parts {
            config,
            clock,
            store,
            bus,
            secrets,
            authz,
            identity,
            egress,
            plugins,
            canvases,
            jobs,
            stopping,
            tasks,
        })))
    }

    /// Begins what runs beside the requests; `work` also runs jobs and delivers audit events.
    pub fn start(&self, work: bool) {
        self.bus.start(&self.stopping, &self.tasks);
        self.canvases.start();
        if work {
            crate::jobs::start(self);
            crate::audit::start(self);
        }
    }
}

/// Connects to the database, making the data folder if it is missing.
///
/// # Errors
/// One line that names the setting to change.
pub async fn connect(config: &Config) -> anyhow::Result<Store> {
    // Others have no business in it: it holds keys, and with SQLite everything.
    let mut folder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(folder.recursive(true), 0o700).create(&config.data_dir).with_context(
        || {
            format!(
                "data_dir: cannot make {}: set KAIZEN_DATA_DIR to a folder that can be written",
                config.data_dir.display()
            )
        },
    )?;
    Store::connect(&config.database_url, config.database_connections)
        .await
        .context("database_url (KAIZEN_DATABASE_URL): cannot connect")
}
