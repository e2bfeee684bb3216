//! The one place where the parts meet: builds every room from the settings and hands them to whoever serves or works.

use std::{ops::Deref, sync::Arc};

use anyhow::{Context, anyhow};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::denials::Denials,
    authz::{self, Authz},
    bus::Bus,
    canvas::{self, Canvases},
    clock::Clock,
    config::Config,
    identity::Identity,
    jobs::Jobs,
    plugins::{Ingredients, Plugins},
    queues::Queues,
    sandbox::egress,
    secrets::Secrets,
    store::{Store, quota::Allowances},
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
    /// Denials that repeat.
    pub denials: Denials,
    /// What organizations may add before their rows are counted again.
    pub allowances: Allowances,
    /// Whose turn it is to cut a version of an agent.
    pub versions: Queues,
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
    /// Cancelled when the server is asked to stop: load balancers are told, requests are still served.
    pub draining: CancellationToken,
    /// Cancelled after that, `drain_seconds` later: sockets close, workers finish what they hold.
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
        plugins: impl AsyncFnOnce(Ingredients<'_>) -> Result<Plugins, E>,
    ) -> anyhow::Result<Self> {
        let store = connect(&config).await?;
        store.migrate().await?;
        // Policies compare them: a server that did not get so far would decide otherwise than the others.
        authz::respell::environments(&store, &clock).await.context(
            "could not bring stored environments into their one spelling, which reads gateways and deployments; if that takes \
             long here, start with a larger database_statement_seconds",
        )?;
        let bus = Bus::connect(config.redis_url.as_deref(), &clock)?;
        let secrets = Secrets::load(&config, &clock)?;
        let authz = Authz::new(clock.clone(), &config.limits)?;
        let resolver = egress::SystemResolver::new(egress::LookupBounds {
            at_once: config.limits.name_lookups,
            for_sign_in: config.limits.name_lookups_for_sign_in,
            per_organization: config.limits.name_lookups_per_organization,
            per_domain: config.limits.name_lookups_per_domain,
        });
        let egress = egress::Client::new(config.egress(), Arc::new(resolver));
        let ingredients = Ingredients {
            config: &config,
            secrets: &secrets,
            egress: egress.clone(),
            store: &store,
            clock: &clock,
            bus: &bus,
        };
        let plugins = plugins(ingredients).await?;
        let identity = Identity::new(&config, &clock, &store, &secrets, &egress).await?;
        let denials = Denials::new(&config.limits);
        let allowances = Allowances::new(&config.limits);
        let versions = Queues::new(config.limits.versions_waiting_per_organization);
        let jobs = Jobs::new(&config.limits);
        let (draining, stopping) = (CancellationToken::new(), CancellationToken::new());
        let tasks = TaskTracker::new();
        let canvases = Canvases::new(canvas::Parts {
            store: store.clone(),
            clock: clock.clone(),
            bus: bus.clone(),
            identity: identity.clone(),
            authz: authz.clone(),
            denials: denials.clone(),
            limits: config.limits.clone(),
            host: hex::encode(clock.bytes::<8>()),
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
            denials,
            allowances,
            versions,
            identity,
            egress,
            plugins,
            canvases,
            jobs,
            draining,
            stopping,
            tasks,
        })))
    }

    /// Begins what runs beside the requests; `work` also runs jobs and delivers audit events.
    pub fn start(&self, work: bool) {
        self.bus.start(&self.stopping, &self.tasks);
        self.canvases.start();
        self.plugins.start(&self.stopping, &self.tasks);
        crate::audit::denials::start(self);
        self.authz.start(self.store.clone(), self.stopping.clone(), &self.tasks);
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
    Store::connect(&config.database_url, &config.limits).await.map_err(|error| {
        let at = place(&config.database_url);
        // Its text alone: sqlx's causes repeat it.
        anyhow!("database_url (KAIZEN_DATABASE_URL): {at} ({error})")
    })
}

/// Which database an address means and what to look at where it cannot be opened; without user and password.
fn place(url: &str) -> String {
    let bare = url.split(['?', '#']).next().unwrap_or_default();
    if let Some(path) = bare.strip_prefix("sqlite:") {
        return format!("cannot open {path}: its folder must be there, and it must be an SQLite file or not there yet");
    }
    match url::Url::parse(bare) {
        Ok(url) => {
            let (host, name) = (url.host_str().unwrap_or("its socket"), url.path().trim_start_matches('/'));
            let port = url.port().unwrap_or(5432);
            format!(
                "cannot connect to database `{name}` at {host}:{port}: see that it runs there and lets this user in"
            )
        }
        Err(_) => "cannot connect: expected postgres://USER:PASSWORD@HOST/DATABASE".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_without_user_and_password() {
        assert!(place("sqlite:/no/such/kaizen.db?mode=rw").starts_with("cannot open /no/such/kaizen.db:"));
        let place = place("postgres://kaizen:hunter2@db.example.com:6432/studio?password=hunter3");
        assert!(place.contains("database `studio` at db.example.com:6432") && !place.contains("hunter"), "{place}");
    }
}
