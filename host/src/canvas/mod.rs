//! The canvas: people draw an agent together, everyone sees the same, and what was acknowledged is on disk.
//!
//! | file | what it does |
//! |---|---|
//! | `journal` | the order of messages, group commit, repeats, snapshots |
//! | `room`, `join`, `write`, `look` | one open canvas on this host: joining, storing and telling, access and other hosts |
//! | `socket`, `frames`, `fragments`, `outbox` | the protocol and its bounds |
//! | `quota`, `memory` | what one person, organization or canvas may take of this host |
//! | `storage` | what a canvas, and an organization's canvases, may take of the database |
//! | `health`, `patience` | a database that does not answer |
//! | `peers`, `elsewhere` | presence |
//! | `edits` | what the audit trail tells of it |
//!
//! PostgreSQL or the SQLite file is the truth; the bus only says when to look. A host that gets no hints looks about once
//! a second while a canvas is open.

mod access;
pub mod edits;
mod elsewhere;
mod fragments;
mod frames;
mod health;
mod join;
pub mod journal;
#[cfg(test)]
mod journal_tests;
mod look;
mod memory;
mod outbox;
mod patience;
mod peers;
mod quota;
mod room;
mod socket;
#[cfg(test)]
mod socket_tests;
mod storage;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod trouble_tests;
mod write;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{
    Semaphore,
    broadcast::error::RecvError,
    mpsc::{self, error::TrySendError},
    oneshot,
};
use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    fragments::accept,
    frames::{MESSAGE, PROTOCOL},
    outbox::Close,
    socket::refuse,
};
use self::{
    memory::{Memory, Share},
    outbox::Outbox,
    quota::Quota,
    room::{Command, Door, Heard, INBOX, Inbox, Join, Nudge, Room, failed},
};
use crate::{
    audit::denials::Denials,
    authz::Authz,
    bus::{Bus, Hint},
    clock::Clock,
    config::limits::ServerLimits,
    domain::{
        agent::Agent,
        id::{CanvasId, OrganizationId},
        principal::Principal,
    },
    identity::Identity,
    queues::Queues,
    store::{
        Store, StoreError,
        canvas::{self, Loaded},
    },
};

/// What other hosts tell of presence and a room has not looked at yet; more is dropped.
const HEARD: usize = 1024;
/// A room may end just when somebody comes; more often than this it is a defect.
const TRIES: usize = 8;

/// What rooms are built on.
pub struct Parts {
    /// The database.
    pub store: Store,
    /// Time and randomness.
    pub clock: Clock,
    /// Hints between hosts.
    pub bus: Bus,
    /// Who somebody is.
    pub identity: Identity,
    /// What they may do.
    pub authz: Authz,
    /// Denials that the audit trail tells of.
    pub denials: Denials,
    /// What one caller may take.
    pub limits: ServerLimits,
    /// Names this process, for other hosts.
    pub host: String,
    /// The server stops.
    pub stopping: CancellationToken,
    /// What must end before the process does.
    pub tasks: TaskTracker,
}

/// The canvas rooms of this host. Cheap to clone.
#[derive(Clone)]
pub struct Canvases {
    parts: Arc<Parts>,
    rooms: Arc<Mutex<HashMap<CanvasId, Handle>>>,
    quota: Quota,
    memory: Memory,
    /// Rooms that are being opened, and canvases that are read for requests: of each organization one at a time.
    opening: Queues,
    reading: Queues,
}

/// How to reach an open room.
struct Handle {
    organization: OrganizationId,
    door: Door,
    heard: mpsc::Sender<Heard>,
    nudge: Weak<Nudge>,
}

/// A socket that wants to join.
pub struct Connect {
    /// Who.
    pub principal: Principal,
    /// Whose canvas, one of their organization's.
    pub agent: Agent,
    /// Up to where the client has the canvas.
    pub since: Option<i64>,
    /// How the client calls itself: see the journal on repeats.
    pub client: Option<String>,
}

impl Canvases {
    /// None open.
    pub fn new(parts: Parts) -> Self {
        let (quota, memory) = (Quota::new(parts.limits.clone()), Memory::new(&parts.limits));
        // Sockets and requests have bounds of their own.
        let (opening, reading) = (Queues::new(usize::MAX), Queues::new(usize::MAX));
        Self { parts: Arc::new(parts), rooms: Arc::default(), quota, memory, opening, reading }
    }

    /// Reads a canvas for a request, and makes something of it on a thread for what takes long.
    ///
    /// # Errors
    /// As the database and `then` say.
    pub async fn read<T: Send + 'static>(
        &self,
        organization: OrganizationId,
        canvas: CanvasId,
        then: impl FnOnce(Loaded) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self.reading.turn(organization).await;
        let rows = canvas::rows(&mut self.parts.store.read().await?, organization, canvas).await?;
        rows.load_aside(turn, then).await
    }

    /// Begins to pass hints to the rooms, until the server stops.
    pub fn start(&self) {
        let this = self.clone();
        let mut hints = self.parts.bus.subscribe();
        self.parts.tasks.spawn(async move {
            let passing = async {
                loop {
                    match hints.recv().await {
                        Ok(hint) => this.pass(hint),
                        Err(RecvError::Lagged(_)) => this.pass(Hint::Resync),
                        Err(RecvError::Closed) => return,
                    }
                }
            };
            this.parts.stopping.run_until_cancelled(passing).await;
        });
    }

    fn pass(&self, hint: Hint) {
        let rooms = self.rooms.lock();
        let nudge = |handle: &Handle| handle.nudge.upgrade();
        match hint {
            Hint::Canvas { canvas, .. } => {
                if let Some(nudge) = rooms.get(&canvas).and_then(nudge) {
                    nudge.look();
                }
            }
            Hint::Presence { canvas, peer, frame } => hear(rooms.get(&canvas), Heard::Presence(peer, frame)),
            Hint::WhoIsThere { canvas } => hear(rooms.get(&canvas), Heard::WhoIsThere),
            Hint::Access { organization } => {
                let concerned = rooms.values().filter(|handle| handle.organization == organization);
                concerned.filter_map(nudge).for_each(|nudge| nudge.distrust());
            }
            Hint::Resync => rooms.values().filter_map(nudge).for_each(|nudge| nudge.distrust()),
            Hint::Job | Hint::Deployment { .. } | Hint::Audit { .. } | Hint::Plugins => {}
        }
    }

    /// Joins the canvas's room, opening it if need be. The first frames are in the outbox then.
    async fn join(&self, connect: &Connect, peer: &str, outbox: &Outbox) -> Result<Door, Close> {
        for _ in 0..TRIES {
            let door = self.room(&connect.agent)?;
            let (joined, answer) = oneshot::channel();
            let join = Join {
                peer: peer.to_owned(),
                principal: connect.principal.clone(),
                outbox: outbox.clone(),
                client: connect.client.clone(),
                since: connect.since,
                joined,
            };
            if door.commands.send(Command::Join(Box::new(join))).await.is_ok()
                && let Ok(answer) = answer.await
            {
                return answer.map(|()| door);
            }
        }
        Err(Close::LATER)
    }

    /// The canvas's room, opened if need be and if there is memory for it.
    fn room(&self, agent: &Agent) -> Result<Door, Close> {
        let mut rooms = self.rooms.lock();
        if let Some(handle) = rooms.get(&agent.canvas_id).filter(|handle| !handle.door.commands.is_closed()) {
            return Ok(handle.door.clone());
        }
        let memory = self.memory.share(agent.organization_id)?;
        let (commands, received) = mpsc::channel(INBOX);
        let (heard, hearing) = mpsc::channel(HEARD);
        let nudge = Arc::new(Nudge::default());
        let most = self.parts.limits.canvas_inbox_kib * 1024;
        let door = Door { commands, bytes: Arc::new(Semaphore::new(most)), most };
        let handle =
            Handle { organization: agent.organization_id, door: door.clone(), heard, nudge: Arc::downgrade(&nudge) };
        rooms.insert(agent.canvas_id, handle);
        let inbox = Inbox { commands: received, heard: hearing, nudge };
        self.parts.tasks.spawn(self.clone().keep(agent.clone(), memory, door.commands.downgrade(), inbox));
        Ok(door)
    }

    /// A room from its opening to its end. When its inbox goes, by whatever end, its sockets notice and are closed.
    async fn keep(self, agent: Agent, memory: Share, me: mpsc::WeakSender<Command>, mut inbox: Inbox) {
        let _open = Open::new();
        let canvas = agent.canvas_id;
        let opening = async {
            // What one takes while it is read is not known before: so it is counted before the next one is.
            let _turn = self.opening.turn(agent.organization_id).await;
            Room::open(self.parts.clone(), agent, memory).await
        };
        let deadline = Instant::now() + Duration::from_secs(self.parts.limits.canvas_join_seconds);
        let why = match patience::until(deadline, opening).await {
            Ok(room) if room.storage.out_of_memory => Some(Close::MEMORY),
            Ok(room) => {
                tokio::select! {
                    () = room.run(&mut inbox) => {}
                    () = self.out_of_time() => {
                        tracing::warn!(%canvas, "a canvas did not come to its end in time; what was not acknowledged may not be stored");
                    }
                }
                None
            }
            Err(error) => Some(failed(&error)),
        };
        {
            let mut rooms = self.rooms.lock();
            let mine = |handle: &Handle| me.upgrade().is_some_and(|me| me.same_channel(&handle.door.commands));
            if rooms.get(&canvas).is_some_and(mine) {
                rooms.remove(&canvas);
            }
        }
        // Whoever came just now is told why not, or tries again and finds a new room.
        inbox.commands.close();
        while let Some(command) = inbox.commands.recv().await {
            if let (Command::Join(join), Some(close)) = (command, why) {
                let _ = join.joined.send(Err(close));
            }
        }
    }

    /// Some time after the server was asked to stop: a database that hangs must not hold it up.
    async fn out_of_time(&self) {
        self.parts.stopping.cancelled().await;
        sleep(Duration::from_secs(self.parts.limits.canvas_stop_seconds)).await;
    }
}

/// Counts a room in the metrics while it is there, however it ends.
struct Open;

impl Open {
    fn new() -> Self {
        metrics::gauge!("kaizen_canvas_rooms").increment(1.0);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("kaizen_canvas_rooms").decrement(1.0);
    }
}

fn hear(handle: Option<&Handle>, heard: Heard) {
    if let Some(handle) = handle
        && let Err(TrySendError::Full(_)) = handle.heard.try_send(heard)
    {
        metrics::counter!("kaizen_canvas_presence_dropped_total").increment(1);
    }
}
