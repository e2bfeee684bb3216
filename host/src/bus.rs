//! Hints between hosts, and between the rooms of one host: "something changed, look again".
//!
//! A hint may be lost, repeated or late; whoever relies on one also looks at the database now and then. Within one
//! process hints go through a broadcast channel; with `KAIZEN_REDIS_URL` also through Redis's publish and subscribe, one
//! channel for all hosts. Publishing never waits and never fails: what does not fit the queue to Redis is dropped, and
//! while Redis is away everything is slower and nothing is lost. After each (re)connection [`Hint::Resync`] tells
//! everyone, here and elsewhere, to look at the database for what was missed meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, mpsc},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::Clock,
    domain::id::{CanvasId, DeploymentId, OrganizationId},
};

/// What changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "hint", rename_all = "snake_case")]
pub enum Hint {
    /// Operations were committed to a canvas, up to this sequence.
    Canvas {
        /// Which canvas.
        canvas: CanvasId,
        /// The last committed sequence.
        sequence: i64,
    },
    /// Presence of one peer, to be shown to the others and never stored: the frame, ready to send.
    Presence {
        /// Which canvas.
        canvas: CanvasId,
        /// Who sent it, so that it is not sent back.
        peer: String,
        /// JSON text frame.
        frame: String,
    },
    /// A host opened this canvas: the others say again who is there.
    WhoIsThere {
        /// Which canvas.
        canvas: CanvasId,
    },
    /// Roles, users, sessions or policies of an organization changed: check open sockets again.
    Access {
        /// Which organization.
        organization: OrganizationId,
    },
    /// A job may be ready to run.
    Job,
    /// A deployment has a new event.
    Deployment {
        /// Which deployment.
        deployment: DeploymentId,
    },
    /// An audit event was committed.
    Audit {
        /// Which organization.
        organization: OrganizationId,
    },
    /// What is installed of plugins, or which version of one is in use, changed.
    Plugins,
    /// Hints may have been missed: look at the database for everything you follow.
    Resync,
}

/// Hints that wait to be picked up, for each receiver; one that lags further behind is told so.
const LOCAL: usize = 4096;
/// Hints that wait for Redis; more are dropped.
const OUTGOING: usize = 4096;
/// The one channel of all hosts; the version is that of [`Message`].
const CHANNEL: &str = "kaizen:hints:1";
/// For Redis to accept a connection, or to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between attempts to connect, at first and at the most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A connection on which nothing was heard for so long is asked whether it is still there.
const QUIET: Duration = Duration::from_secs(5);

/// As it goes through Redis.
#[derive(Serialize, Deserialize)]
struct Message {
    /// The sender's, so that it ignores what it sent itself.
    host: String,
    #[serde(flatten)]
    hint: Hint,
}

/// Publishes and receives hints. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    local: broadcast::Sender<Hint>,
    remote: Option<mpsc::Sender<Hint>>,
    /// Whether Redis answers.
    linked: Arc<AtomicBool>,
    /// Until it is started.
    link: Arc<Mutex<Option<Link>>>,
}

impl Bus {
    /// A bus within this process only.
    pub fn local() -> Self {
        Self { local: broadcast::channel(LOCAL).0, remote: None, linked: Arc::default(), link: Arc::default() }
    }

    /// With `redis_url`, a bus between hosts, once it is [started](Bus::start); without, one within this process.
    ///
    /// # Errors
    /// If the address is not one: a line that names the setting.
    pub fn connect(redis_url: Option<&str>, clock: &Clock) -> anyhow::Result<Self> {
        let Some(url) = redis_url else { return Ok(Self::local()) };
        let client = redis::Client::open(url).map_err(|error| {
            // The address may hold a password: only what kind of fault it is.
            anyhow::anyhow!("redis_url: expected redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE] ({})", error.category())
        })?;
        let (sender, outgoing) = mpsc::channel(OUTGOING);
        let local = broadcast::channel(LOCAL).0;
        let host = hex::encode(clock.bytes::<8>()).into();
        let linked = Arc::new(AtomicBool::new(false));
        let link = Link { client, clock: clock.clone(), host, local: local.clone(), outgoing, linked: linked.clone() };
        Ok(Self { local, remote: Some(sender), linked, link: Arc::new(Mutex::new(Some(link))) })
    }

    /// Begins to keep up the connection to Redis, until `stopping`. Does not wait for Redis, which may come later.
    pub fn start(&self, stopping: &CancellationToken, tasks: &TaskTracker) {
        if let Some(link) = self.link.lock().take() {
            metrics::gauge!("kaizen_bus_connected").set(0.0);
            let stopping = stopping.clone();
            tasks.spawn(async move { stopping.run_until_cancelled(link.keep()).await });
        }
    }

    /// Tells everyone, here and on the other hosts. Never waits and never fails.
    pub fn publish(&self, hint: Hint) {
        self.publish_elsewhere(hint.clone());
        drop(self.local.send(hint));
    }

    /// Tells the other hosts only.
    pub fn publish_elsewhere(&self, hint: Hint) {
        if let Some(remote) = &self.remote
            && remote.try_send(hint).is_err()
        {
            metrics::counter!("kaizen_bus_dropped_total").increment(1);
        }
    }

    /// Whether there may be other hosts that hear hints.
    pub fn reaches_others(&self) -> bool {
        self.remote.is_some()
    }

    /// Whether other hosts hear hints now; otherwise what they are to know must be read from the database.
    pub fn is_linked(&self) -> bool {
        self.linked.load(Ordering::Relaxed)
    }

    /// All hints from now on. A receiver that lags behind learns so from [`broadcast::error::RecvError::Lagged`]
    /// and must then look at the database for everything it follows, as upon [`Hint::Resync`].
    pub fn subscribe(&self) -> broadcast::Receiver<Hint> {
        self.local.subscribe()
    }
}

/// The connection to Redis.
struct Link {
    client: redis::Client,
    clock: Clock,
    host: Arc<str>,
    local: broadcast::Sender<Hint>,
    outgoing: mpsc::Receiver<Hint>,
    linked: Arc<AtomicBool>,
}

impl Link {
    /// Connects again whenever the connection ends.
    async fn keep(mut self) {
        let mut wait = BACK_OFF.0;
        let mut said = false;
        loop {
            let mut connected = false;
            let ended = self.connection(&mut connected).await;
            self.linked.store(false, Ordering::Relaxed);
            metrics::gauge!("kaizen_bus_connected").set(0.0);
            if connected {
                (wait, said) = (BACK_OFF.0, false);
            }
            if !said {
                tracing::warn!(error = %ended, "Redis is away: hints between hosts are slower until it is back");
                said = true;
            }
            tokio::time::sleep(self.jitter(wait)).await;
            wait = (wait * 2).min(BACK_OFF.1);
        }
    }

    /// Half to all of it, so that hosts do not come back in step.
    fn jitter(&self, wait: Duration) -> Duration {
        let [random] = self.clock.bytes::<1>();
        wait.mul_f64(0.5 + f64::from(random) / 510.0)
    }

    /// One connection from beginning to end: subscribes, tells everyone to look again, then passes hints both ways.
    async fn connection(&mut self, connected: &mut bool) -> redis::RedisError {
        match self.converse(connected).await {
            Ok(()) => redis::RedisError::from((redis::ErrorKind::Io, "the connection ended")),
            Err(error) => error,
        }
    }

    async fn converse(&mut self, connected: &mut bool) -> redis::RedisResult<()> {
        let late = |_| redis::RedisError::from((redis::ErrorKind::Io, "no answer in time"));
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let mut publisher = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let subscriber = timeout(PATIENCE, self.client.get_async_pubsub()).await.map_err(late)??;
        let (mut sink, mut stream) = subscriber.split();
        timeout(PATIENCE, sink.subscribe(CHANNEL)).await.map_err(late)??;
        *connected = true;
        self.linked.store(true, Ordering::Relaxed);
        metrics::gauge!("kaizen_bus_connected").set(1.0);
        tracing::info!("connected to Redis");
        drop(self.local.send(Hint::Resync));
        let mut batch = vec![Hint::Resync];
        self.send(&mut publisher, &mut batch).await?;
        loop {
            tokio::select! {
                message = timeout(QUIET, stream.next()) => match message {
                    Ok(Some(message)) => self.receive(message.get_payload_bytes()),
                    Ok(None) => return Ok(()),
                    // Half-open connections look quiet too.
                    Err(_) => timeout(PATIENCE, sink.ping::<redis::Value>()).await.map_err(late)?.map(drop)?,
                },
                count = self.outgoing.recv_many(&mut batch, 128) => {
                    if count == 0 {
                        // Nobody can publish any more; hints of others still arrive.
                        std::future::pending::<()>().await;
                    }
                    self.send(&mut publisher, &mut batch).await?;
                }
            }
        }
    }

    async fn send(
        &self,
        publisher: &mut redis::aio::MultiplexedConnection,
        batch: &mut Vec<Hint>,
    ) -> redis::RedisResult<()> {
        let mut pipeline = redis::pipe();
        for hint in batch.drain(..) {
            let message = Message { host: self.host.to_string(), hint };
            if let Ok(text) = serde_json::to_string(&message) {
                pipeline.cmd("PUBLISH").arg(CHANNEL).arg(text).ignore();
            }
        }
        pipeline.exec_async(publisher).await
    }

    /// Passes on what another host sent; what cannot be read is ignored: it may be a newer host's.
    fn receive(&self, payload: &[u8]) {
        match serde_json::from_slice::<Message>(payload) {
            Ok(message) if *message.host == *self.host => {}
            Ok(message) => drop(self.local.send(message.hint)),
            Err(error) => {
                metrics::counter!("kaizen_bus_unreadable_total").increment(1);
                tracing::debug!(%error, "a message on Redis could not be read");
            }
        }
    }
}
