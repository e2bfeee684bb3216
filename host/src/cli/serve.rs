//! `kaizen serve`.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{api, app::App, clock::Clock, config::Config, telemetry};

/// Which part of the work this host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Answers requests.
    Api,
    /// Runs jobs and delivers audit events.
    Worker,
    /// Both.
    All,
}

/// Run the server
#[derive(Debug, Args)]
pub struct Serve {
    /// Which part of the work this host does
    #[arg(long, value_enum, default_value_t = Role::All)]
    role: Role,
}

/// A server that is up.
pub struct Running {
    /// Its parts.
    pub app: App,
    /// Where the API is.
    pub address: SocketAddr,
    /// Where metrics and health are.
    pub ops_address: SocketAddr,
}

impl Running {
    /// Builds everything and begins to serve. The listeners are taken before anything is begun.
    ///
    /// # Errors
    /// One line that names what to change.
    pub async fn start(mut config: Config, role: Role) -> anyhow::Result<Self> {
        let handle = telemetry::metrics()?;
        let ops_listener = api::server::bind("ops_listen", config.ops_listen).await?;
        let listener: TcpListener = api::server::bind("listen", config.listen).await?;
        let (address, ops_address) = (listener.local_addr()?, ops_listener.local_addr()?);
        if config.public_url.port() == Some(0) {
            // `--listen HOST:0`: only now is it known where browsers reach this server.
            let _ = config.public_url.set_port(Some(address.port()));
        }
        let app = App::build(config, Clock::system()).await?;
        app.start(role != Role::Api);
        let ops = api::health::router(app.clone(), handle.clone());
        app.tasks.spawn(api::server::serve(ops_listener, ops, app.stopping.clone()));
        if role != Role::Worker {
            app.tasks.spawn(api::server::serve(listener, api::router(&app), app.stopping.clone()));
        }
        app.tasks.spawn(upkeep(app.clone(), handle));
        Ok(Self { app, address, ops_address })
    }

    /// Stops taking requests and jobs, lets what is under way finish, and returns.
    pub async fn stop(self) {
        self.app.stopping.cancel();
        self.app.tasks.close();
        self.app.tasks.wait().await;
    }
}

/// Keeps what grows from growing: metrics are folded together, old answers to Idempotency-Keys are forgotten.
async fn upkeep(app: App, handle: metrics_exporter_prometheus::PrometheusHandle) {
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(5));
    let mut hourly = app.clock.now();
    loop {
        tokio::select! {
            () = app.stopping.cancelled() => return,
            _ = tick.tick() => handle.run_upkeep(),
        }
        let now = app.clock.now();
        if now >= hourly {
            hourly = now + chrono::TimeDelta::hours(1);
            if let Err(error) = forget(&app, now - chrono::TimeDelta::hours(24)).await {
                tracing::warn!(%error, "forgetting old idempotency keys and sessions failed; tried again in an hour");
            }
        }
    }
}

async fn forget(app: &App, before: chrono::DateTime<chrono::Utc>) -> Result<(), crate::store::StoreError> {
    let mut tx = app.store.begin().await?;
    crate::store::idempotency::forget(&mut tx, before).await?;
    tx.commit().await?;
    app.identity.sweep(&app.store, &app.clock).await
}

impl Serve {
    /// Serves until SIGINT or SIGTERM; a second one ends at once.
    ///
    /// # Errors
    /// One line that names what to change.
    pub async fn run(self, config: Config) -> anyhow::Result<()> {
        let running = Running::start(config, self.role).await?;
        tracing::info!("ops on http://{}", running.ops_address);
        if self.role != Role::Worker {
            tracing::info!("listening on http://{}", running.address);
        }
        stop_asked().await?;
        tracing::info!("stopping: requests and jobs under way may finish");
        tokio::select! {
            () = running.stop() => tracing::info!("stopped"),
            again = stop_asked() => {
                again?;
                anyhow::bail!("stopped at once, as asked twice");
            }
        }
        Ok(())
    }
}

/// Waits for SIGINT or SIGTERM.
///
/// # Errors
/// If signals cannot be listened to.
pub async fn stop_asked() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
