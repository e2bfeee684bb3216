//! `kaizen serve`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::{Args, ValueEnum};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{
        self,
        client::ClientAddresses,
        server::{self, Server, descriptors},
    },
    app::App,
    clock::Clock,
    config::{Config, limits::ServerLimits, proxies::Proxies},
    telemetry,
};

/// For giving back what has not ended once requests, canvases, jobs and deliveries have had their time to.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// For questions to the operators' listener that are under way at the very end, seconds.
const OPS_STOP_SECONDS: u64 = 2;

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
    /// Where the API is; nowhere on a host that only works.
    pub address: Option<SocketAddr>,
    /// Where metrics and health are.
    pub ops_address: SocketAddr,
    /// The operators' listener, which closes last, and what closes it.
    ops: (JoinHandle<()>, CancellationToken),
}

impl Running {
    /// Builds everything and begins to serve. The listeners are taken before anything is begun, and health and metrics are answered
    /// from then on: migrations may take long, and nobody is to take the process for dead meanwhile.
    ///
    /// # Errors
    /// One line that names what to change.
    pub async fn start(mut config: Config, role: Role) -> anyhow::Result<Self> {
        let descriptors = descriptors::raise();
        let handle = telemetry::metrics()?;
        let ops_listener = server::bind("ops_listen", config.ops_listen).await?;
        let ops_address = ops_listener.local_addr()?;
        let listener = match role {
            Role::Worker => None,
            Role::Api | Role::All => Some(server::bind("listen", config.listen).await?),
        };
        let address = listener.as_ref().map(|listener| listener.local_addr()).transpose()?;
        if let (Some(0), Some(address)) = (config.public_url.port(), address) {
            // `--listen HOST:0`: only now is it known where browsers reach this server.
            let _ = config.public_url.set_port(Some(address.port()));
        }
        let (up, ops_stopping) = (api::health::Up::default(), CancellationToken::new());
        // Closed also where the server does not come up.
        let unless_up = ops_stopping.clone().drop_guard();
        let ops = Server {
            name: "ops",
            router: api::health::router(Arc::clone(&up), handle.clone()),
            connections: config.limits.ops_connections as usize,
            // Everybody who asks may be behind one address.
            connections_per_client: config.limits.ops_connections as usize,
            clients: ClientAddresses::new(Proxies::default()),
            limits: ServerLimits { stop_seconds: OPS_STOP_SECONDS, ..config.limits.clone() },
            draining: CancellationToken::new(),
            stopping: ops_stopping.clone(),
        };
        let ops = (tokio::spawn(ops.serve(ops_listener)), ops_stopping);
        let app = Box::pin(App::build(config, Clock::system())).await?;
        app.start(role != Role::Api);
        let limits = &app.config.limits;
        if let Some(listener) = listener {
            let connections = connections(&app.config, descriptors);
            let api = Server {
                name: "api",
                router: api::router(&app)?,
                connections,
                connections_per_client: limits.connections_per_client as usize,
                clients: ClientAddresses::new(app.config.proxies.clone()),
                limits: limits.clone(),
                draining: app.draining.clone(),
                stopping: app.stopping.clone(),
            };
            app.tasks.spawn(api.serve(listener));
        }
        app.tasks.spawn(upkeep(app.clone(), handle));
        drop(up.set(app.clone()));
        drop(unless_up.disarm());
        Ok(Self { app, address, ops_address, ops })
    }

    /// Says that it is not ready any more, and serves on for `drain_seconds`, so that load balancers send new requests
    /// elsewhere before the listener closes.
    pub async fn drain(&self) {
        self.app.draining.cancel();
        if self.address.is_some() {
            tokio::time::sleep(self.app.config.drain).await;
        }
    }

    /// Stops taking requests and jobs, lets what is under way finish, and returns. Health and metrics are answered to the
    /// end. What does not end in time, such as a statement that a silent database never answers, is cut off: it holds
    /// nothing that was acknowledged and not committed, and what it has claimed is another host's once its lease ends.
    pub async fn stop(self) {
        self.app.draining.cancel();
        self.app.stopping.cancel();
        self.app.tasks.close();
        let limits = &self.app.config.limits;
        let background = limits.canvas_stop_seconds.max(limits.job_stop_seconds).max(limits.audit_stop_seconds);
        let under_way = limits.stop_seconds.max(background);
        let ending = async {
            self.app.tasks.wait().await;
            crate::audit::denials::finish(&self.app).await;
        };
        if tokio::time::timeout(Duration::from_secs(under_way) + LAST_WRITES, ending).await.is_err() {
            tracing::warn!(tasks = self.app.tasks.len(), "stopping while background work waits for the database");
        }
        let (ops, stopping) = self.ops;
        stopping.cancel();
        drop(ops.await);
    }
}

/// Connections to the API, as many as are set if the file descriptors suffice.
fn connections(config: &Config, descriptors: u64) -> usize {
    let connections = descriptors::connections(&config.limits, descriptors);
    let most = config.limits.connections;
    tracing::info!(
        file_descriptors = descriptors,
        connections,
        per_client = config.limits.connections_per_client,
        "connections to the API at the most"
    );
    if connections < most as usize {
        tracing::warn!(
            file_descriptors = descriptors,
            "the limit of open files leaves room for {connections} of {most} `connections`: raise it (`ulimit -n`, \
             `LimitNOFILE=` of systemd) or lower the setting"
        );
    }
    connections
}

/// Keeps what grows from growing: metrics are folded together, old answers to Idempotency-Keys are forgotten. And notices when a
/// database that took no changes does again.
async fn upkeep(app: App, handle: metrics_exporter_prometheus::PrometheusHandle) {
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(5));
    let mut hourly = app.clock.now();
    loop {
        tokio::select! {
            () = app.stopping.cancelled() => return,
            _ = tick.tick() => handle.run_upkeep(),
        }
        app.stopping.run_until_cancelled(app.store.look_again()).await;
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
    let answers =
        app.store.sweep(&app.stopping, |tx, most| Box::pin(crate::store::idempotency::forget(tx, before, most)));
    answers.await?;
    app.identity.sweep(&app.store, &app.clock, &app.stopping).await
}

impl Serve {
    /// Serves until SIGINT or SIGTERM; a second one ends at once.
    ///
    /// # Errors
    /// One line that names what to change.
    pub async fn run(self, config: Config) -> anyhow::Result<()> {
        // Asked for from the beginning: the kernel drops a signal to the first process of a container that does not listen for it. And
        // listened for once: what came between two of the waits below would be lost otherwise.
        let mut signals = Signals::to_stop()?;
        let running = tokio::select! {
            biased;
            () = signals.next() => {
                tracing::info!("stopped before it was up");
                return Ok(());
            }
            running = Running::start(config, self.role) => running?,
        };
        tracing::info!("ops on http://{}", running.ops_address);
        if let Some(address) = running.address {
            tracing::info!("listening on http://{address}");
        }
        signals.next().await;
        let stop = async {
            if running.address.is_some() && !running.app.config.drain.is_zero() {
                let seconds = running.app.config.drain.as_secs();
                tracing::info!(seconds, "draining: no longer ready, but still serving");
            }
            running.drain().await;
            tracing::info!("stopping: requests and jobs under way may finish");
            running.stop().await;
        };
        tokio::select! {
            () = stop => tracing::info!("stopped"),
            () = signals.next() => anyhow::bail!("stopped at once, as asked twice"),
        }
        Ok(())
    }
}

/// Signals that are listened for, each of which is waited for by [`Signals::next`], be it that it came before.
struct Signals([Signal; 2]);

impl Signals {
    /// SIGTERM and SIGINT.
    fn to_stop() -> std::io::Result<Self> {
        Self::of([SignalKind::terminate(), SignalKind::interrupt()])
    }

    fn of([one, other]: [SignalKind; 2]) -> std::io::Result<Self> {
        Ok(Self([signal(one)?, signal(other)?]))
    }

    async fn next(&mut self) {
        let [one, other] = &mut self.0;
        tokio::select! {
            _ = one.recv() => {}
            _ = other.recv() => {}
        }
    }
}

/// Waits for SIGINT or SIGTERM.
///
/// # Errors
/// If signals cannot be listened to.
pub async fn stop_asked() -> std::io::Result<()> {
    Signals::to_stop()?.next().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn a_signal_between_two_waits_is_not_lost() {
        // Not those that end this process.
        let mut signals = Signals::of([SignalKind::user_defined1(), SignalKind::user_defined2()]).unwrap();
        for signal in [Signal::USR1, Signal::USR2] {
            assert!(futures::FutureExt::now_or_never(signals.next()).is_none());
            kill_process(getpid(), signal).unwrap();
            tokio::time::timeout(Duration::from_secs(30), signals.next()).await.expect("it came before this wait");
        }
    }
}
