//! A room: one open canvas on this host, a task that owns it and does one thing after another.
//!
//! Sockets hand their messages to the room's bounded inbox; while one batch is being committed the next gathers there.
//! Everything a socket is told goes through its [`Outbox`] in the order in which it happened, so that each sees the
//! sequence without gaps.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    Parts,
    edits::Edits,
    elsewhere::Elsewhere,
    frames::{self, Refusal},
    journal::Journal,
    memory::Share,
    outbox::{Close, Outbox},
    patience,
    peers::{ANNOUNCE, Members, Remote, send_all},
    quota::{Bucket, Rate},
    storage::Storage,
};
use crate::{
    bus::Hint,
    domain::{agent::Agent, canvas::Op, principal::Principal},
    store::StoreError,
};

/// Commands that wait, at the most; then the sockets are not read from.
pub const INBOX: usize = 64;
/// Between two looks at the database: access is never older than a second.
const LOOK: Duration = Duration::from_millis(750);
/// How long an empty room stays, for those who come back.
const LINGER: Duration = Duration::from_secs(5);

/// What sockets ask of a room.
pub enum Command {
    /// To be let in. The first frames are in the outbox before the answer.
    Join(Box<Join>),
    /// To store a message.
    Ops {
        /// Whose.
        peer: String,
        /// What the client calls it.
        reference: Option<String>,
        /// The operations.
        ops: Vec<Op>,
        /// The operations as JSON.
        text: String,
        /// Their place in the inbox, until they are answered.
        place: OwnedSemaphorePermit,
    },
    /// To answer, in its turn, a message that cannot be read.
    Refuse {
        /// Whose.
        peer: String,
        /// What the client calls it, if that could be made out.
        reference: Option<String>,
        /// Why.
        refusal: Refusal,
    },
    /// To tell the others.
    Presence {
        /// Whose.
        peer: String,
        /// What it tells of itself.
        presence: Map<String, Value>,
    },
    /// The last: after what was asked before, close.
    Leave {
        /// Who.
        peer: String,
        /// With which code.
        close: Close,
    },
}

/// Who asks to be let in.
pub struct Join {
    /// Names the socket.
    pub peer: String,
    /// Who.
    pub principal: Principal,
    /// Where to send.
    pub outbox: Outbox,
    /// How the client calls itself.
    pub client: Option<String>,
    /// Up to where it has the canvas.
    pub since: Option<i64>,
    /// The answer: in, or why not.
    pub joined: oneshot::Sender<Result<(), Close>>,
}

/// The way into a room. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    /// Closed once the room has ended.
    pub commands: mpsc::Sender<Command>,
    /// Bytes of operations that the inbox still has place for.
    pub bytes: Arc<Semaphore>,
    /// As many as it has place for while it is empty.
    pub most: usize,
}

/// How hints reach a room, without ever waiting for it.
#[derive(Default)]
pub struct Nudge {
    stale: AtomicBool,
    notify: Notify,
}

impl Nudge {
    /// There may be new messages.
    pub fn look(&self) {
        self.notify.notify_one();
    }

    /// Access may have changed too.
    pub fn distrust(&self) {
        self.stale.store(true, Ordering::Release);
        self.notify.notify_one();
    }
}

/// What other hosts tell a room of peers.
pub enum Heard {
    /// Of one of theirs.
    Presence(String, String),
    /// That they would like to know.
    WhoIsThere,
}

/// The task's end of everything that comes in.
pub struct Inbox {
    /// From sockets.
    pub commands: mpsc::Receiver<Command>,
    /// From other hosts; what does not fit is dropped.
    pub heard: mpsc::Receiver<Heard>,
    /// From the bus.
    pub nudge: Arc<Nudge>,
}

pub(super) struct Room {
    pub(super) parts: Arc<Parts>,
    pub(super) agent: Agent,
    pub(super) journal: Journal,
    pub(super) edits: Edits,
    pub(super) members: Members,
    pub(super) remote: Remote,
    pub(super) elsewhere: Elsewhere,
    /// What the organization's canvases take of the database.
    pub(super) storage: Storage,
    /// What it takes of the host's memory.
    pub(super) memory: Share,
    /// Messages with operations that the canvas takes.
    pub(super) messages: Bucket,
    /// Whether the database answered when it was last looked at.
    pub(super) reachable: bool,
    /// Whether messages are stored, as far as is known.
    pub(super) writable: bool,
    /// Whether the database answered that it takes no changes: only a change shows that it does again.
    pub(super) refused: bool,
    /// The graph as JSON, while several join at the same sequence.
    pub(super) shown: Option<(i64, Bytes)>,
    /// When what is known of access was true.
    pub(super) known_at: Instant,
    /// A hint said that access changed.
    pub(super) stale: bool,
    /// When everyone was looked up last.
    pub(super) looked_anew: Instant,
    announced: Instant,
    empty_since: Instant,
}

impl Room {
    /// Opens the canvas.
    ///
    /// # Errors
    /// As the database says.
    pub(super) async fn open(parts: Arc<Parts>, agent: Agent, memory: Share) -> Result<Self, StoreError> {
        let journal = parts.journal(&agent).await?;
        let edits = Edits::new(parts.clock.clone(), agent.organization_id, agent.id, agent.canvas_id);
        let now = Instant::now();
        let limits = &parts.limits;
        let rate =
            Rate { per_second: limits.canvas_room_messages_per_second, burst: limits.canvas_room_messages_burst };
        let presence = limits.canvas_presence_kib * 1024;
        let mut room = Self {
            storage: Storage::new(now),
            memory,
            messages: Bucket::new(rate, now),
            parts,
            agent,
            journal,
            edits,
            members: Members::new(),
            remote: Remote::new(presence),
            elsewhere: Elsewhere::default(),
            reachable: true,
            writable: true,
            refused: false,
            shown: None,
            known_at: now,
            stale: true,
            looked_anew: now,
            announced: now,
            empty_since: now,
        };
        room.count_memory();
        room.count_or_log().await;
        Ok(room)
    }

    /// Until nobody has been here for a while.
    pub(super) async fn run(mut self, inbox: &mut Inbox) {
        self.parts.bus.publish_elsewhere(Hint::WhoIsThere { canvas: self.agent.canvas_id });
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands = Vec::new();
        while !self.over() {
            tokio::select! {
                count = inbox.commands.recv_many(&mut commands, INBOX) => {
                    if count == 0 {
                        break;
                    }
                    self.take_stale(&inbox.nudge);
                    self.handle(&mut commands).await;
                }
                () = inbox.nudge.notify.notified() => {
                    self.take_stale(&inbox.nudge);
                    self.look_or_log().await;
                }
                Some(heard) = inbox.heard.recv() => self.hear(heard),
                _ = tick.tick() => {
                    self.tick().await;
                    // From its end: a look takes seconds while the database is silent, and what members send is refused in between.
                    tick.reset();
                }
            }
        }
        if let Err(error) = self.record_ends().await {
            tracing::warn!(%error, canvas = %self.agent.canvas_id, "the end of an edit window was not recorded");
        }
        self.withdraw_presence().await;
    }

    fn over(&self) -> bool {
        let stopping = self.parts.stopping.is_cancelled();
        self.members.is_empty() && (stopping || self.empty_since.elapsed() > LINGER)
    }

    fn take_stale(&mut self, nudge: &Nudge) {
        self.stale |= nudge.stale.swap(false, Ordering::AcqRel);
    }

    /// Messages that follow each other are stored together.
    async fn handle(&mut self, commands: &mut Vec<Command>) {
        let mut batch = Vec::new();
        for command in commands.drain(..) {
            match command {
                Command::Ops { peer, reference, ops, text, place } => {
                    batch.push(super::write::Message { peer, reference, ops, text, place });
                }
                other => {
                    self.write(std::mem::take(&mut batch)).await;
                    match other {
                        Command::Join(join) => self.join(*join).await,
                        Command::Presence { peer, presence } => self.present(&peer, presence),
                        Command::Leave { peer, close } => self.leave(&peer, close).await,
                        Command::Refuse { peer, reference, refusal } => {
                            self.answer_with(&peer, frames::reject(reference.as_deref(), &refusal));
                        }
                        Command::Ops { .. } => {}
                    }
                }
            }
        }
        self.write(batch).await;
    }

    /// Sends a member the answer to what it sent.
    pub(super) fn answer_with(&self, peer: &str, answer: frames::Frame) {
        if let Some(member) = self.members.get(peer) {
            member.outbox.send(answer);
        }
    }

    fn present(&mut self, peer: &str, presence: Map<String, Value>) {
        let Some(member) = self.members.get_mut(peer) else { return };
        let reference = presence.get("ref").and_then(Value::as_str).map(str::to_owned);
        let before = std::mem::replace(&mut member.presence, presence);
        let frame = frames::presence(&member.shown());
        let weight = frame.len();
        let weight_before = std::mem::replace(&mut member.weight, weight);
        let all: usize = self.members.values().map(|member| member.weight).sum();
        if weight > weight_before && all > self.parts.limits.canvas_presence_kib * 1024 {
            if let Some(member) = self.members.get_mut(peer) {
                (member.presence, member.weight) = (before, weight_before);
            }
            let most = self.parts.limits.canvas_presence_kib;
            let detail =
                format!("the people on this canvas tell more than {most} KiB of themselves already: tell less");
            return self
                .answer_with(peer, frames::reject(reference.as_deref(), &Refusal::new("presence_full", detail)));
        }
        self.tell(peer, &frame);
    }

    /// Tells everyone but themselves of a member, here and elsewhere.
    pub(super) fn tell(&self, peer: &str, frame: &frames::Frame) {
        send_all(&self.members, Some(peer), frame);
        self.publish(peer, frame);
    }

    fn publish(&self, peer: &str, frame: &frames::Frame) {
        if self.parts.bus.reaches_others() {
            let (canvas, peer, frame) = (self.agent.canvas_id, peer.to_owned(), frame.as_str().to_owned());
            self.parts.bus.publish_elsewhere(Hint::Presence { canvas, peer, frame });
        }
    }

    async fn leave(&mut self, peer: &str, close: Close) {
        self.remove(peer, |outbox| outbox.finish(close));
        self.tell_ends().await;
    }

    /// Takes a member out and tells the others.
    pub(super) fn remove(&mut self, peer: &str, close: impl FnOnce(&Outbox)) {
        let Some(member) = self.members.remove(peer) else { return };
        close(&member.outbox);
        let frame = frames::left(peer, Some(&member.actor().into()));
        send_all(&self.members, None, &frame);
        self.publish(peer, &frame);
        self.empty_since = Instant::now();
    }

    /// Closes everyone at once.
    pub(super) fn close_all(&mut self, close: Close) {
        let peers: Vec<String> = self.members.keys().cloned().collect();
        for peer in peers {
            self.remove(&peer, |outbox| outbox.close(close));
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::WhoIsThere => self.announce(),
            Heard::Presence(peer, frame) => {
                if !self.members.contains_key(&peer) {
                    self.hear_of(&peer, &frame, Instant::now());
                }
            }
        }
    }

    fn announce(&mut self) {
        self.announced = Instant::now();
        if !self.parts.bus.reaches_others() {
            return;
        }
        for member in self.members.values() {
            self.publish(&member.peer, &frames::presence(&member.shown()));
        }
    }

    async fn tick(&mut self) {
        self.shown = None;
        self.count_memory();
        self.remove_ended();
        if !self.members.is_empty() || !self.writable {
            self.look_or_log().await;
            self.try_writing().await;
            self.count_again().await;
        }
        self.share_presence().await;
        self.close_unconfirmed();
        for frame in self.remote.forget(Instant::now()) {
            send_all(&self.members, None, &frame);
        }
        if self.announced.elapsed() > ANNOUNCE {
            self.announce();
        }
        self.tell_ends().await;
    }

    /// Takes out members whose socket was closed or has ended: their task says so itself, if it still can.
    fn remove_ended(&mut self) {
        let ended = self.members.values().filter(|member| member.outbox.is_closed());
        let ended: Vec<String> = ended.map(|member| member.peer.clone()).collect();
        for peer in ended {
            self.remove(&peer, |outbox| outbox.close(Close::DEFECT));
        }
    }

    /// Records the windows of edits that ended; while that is not possible they are kept.
    async fn tell_ends(&mut self) {
        if self.writable
            && let Err(error) = self.record_ends().await
        {
            self.lost(&error);
        }
    }

    async fn record_ends(&mut self) -> Result<(), StoreError> {
        let members = &self.members;
        let ended = self.edits.ended(|user| members.values().any(|member| member.principal.user_id == user));
        if ended.is_empty() {
            return Ok(());
        }
        let told = async {
            let mut tx = self.parts.store.begin().await?;
            self.edits.record_ends(&mut tx, &ended).await?;
            tx.commit().await
        };
        patience::until(self.parts.deadline(), told).await?;
        self.edits.forget(&ended);
        self.parts.bus.publish(Hint::Audit { organization: self.agent.organization_id });
        Ok(())
    }
}

/// How a failure of the store's looks to a socket.
pub(super) fn failed(error: &StoreError) -> Close {
    match error {
        StoreError::Unavailable(_) | StoreError::Unwritable(..) => {
            tracing::warn!(%error, "canvas: the database does not answer, or takes no changes");
            Close::LATER
        }
        _ => {
            tracing::error!(%error, "canvas: internal error");
            Close::DEFECT
        }
    }
}
