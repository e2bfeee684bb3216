//! One socket: what is read goes to the room, what the room says is written, each at its own pace.

use std::{sync::Arc, time::Duration};

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, interval_at, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Canvases, Connect,
    frames::{self, Incoming, MESSAGE, Refusal},
    outbox::{self, Close, Out, Outbox, Outgoing},
    quota::{self, Bucket, Rate},
    room::{Command, Door},
};

/// Bytes of a message that are read at all, so that one somewhat too large is answered properly.
pub const READ: usize = 4 * MESSAGE;
/// Bytes that are read from the network at once. tungstenite fills as many with zeros before each read, and keeps them.
pub const READ_BUFFER: usize = 8 * 1024;
/// Between pings.
const PING: Duration = Duration::from_secs(20);
/// A socket that nothing was heard from for so long, not even the answer to a ping, is closed.
const SILENCE: Duration = Duration::from_secs(60);
/// For a slow reader to take what is on its way to it, the close frame last.
const STALL: Duration = Duration::from_secs(30);
/// The same, once the server stops.
const STALL_STOPPING: Duration = Duration::from_secs(3);
/// For the other side to answer a close frame (RFC 6455, section 7.1.1).
const LINGER: Duration = Duration::from_secs(1);
/// A peer's presence is passed on at most this often: the last it said, what came between is left out.
const PRESENCE: Duration = Duration::from_millis(33);
/// Bytes that are gathered into one write to the network.
pub const WRITE_BUFFER: usize = 64 * 1024;

/// Closes a socket that was never let in.
pub async fn refuse(mut socket: WebSocket, close: Close) {
    metrics::counter!("kaizen_canvas_closes_total", "code" => close.0.to_string()).increment(1);
    let farewell = async {
        if socket.send(frame(close)).await.is_ok() {
            while let Some(Ok(message)) = socket.recv().await {
                if matches!(message, Message::Close(_)) {
                    break;
                }
            }
        }
    };
    drop(timeout(LINGER, farewell).await);
}

fn frame(Close(code, reason): Close) -> Message {
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}

impl Canvases {
    /// Serves a socket from joining to its end.
    pub async fn serve(&self, socket: WebSocket, connect: Connect) {
        let canvas = connect.agent.canvas_id;
        // Until this socket's memory is free again, also while it is being closed.
        let seat = match self.quota.seat(&connect.principal, canvas, Instant::now()) {
            Ok(seat) => seat,
            Err(close) => return refuse(socket, close).await,
        };
        let (outbox, outgoing) = outbox::pair(self.parts.limits.canvas_outbox_kib * 1024);
        let peer = hex::encode(self.parts.clock.bytes::<8>());
        let patience = Duration::from_secs(self.parts.limits.canvas_join_seconds);
        let joined = tokio::select! {
            joined = timeout(patience, self.join(&connect, &peer, &outbox)) => joined.unwrap_or(Err(Close::LATER)),
            () = self.parts.stopping.cancelled() => Err(Close::RESTART),
        };
        let door = match joined {
            Ok(door) => door,
            Err(close) => return refuse(socket, close).await,
        };
        let (sink, stream) = socket.split();
        let done = CancellationToken::new();
        let reader = Reader {
            stream,
            peer,
            door,
            outbox,
            messages: seat.messages.clone(),
            refusals: Bucket::new(
                Rate { per_second: 1, burst: self.parts.limits.canvas_rate_refusals },
                Instant::now(),
            ),
            done: done.clone(),
            stopping: self.parts.stopping.clone(),
        };
        let writer = Writer { sink, outgoing, stopping: self.parts.stopping.clone() };
        let (mut stream, ()) = tokio::join!(reader.run(), async {
            writer.run().await;
            done.cancel();
        });
        // The close frame is on its way; a connection reset now could overtake it.
        let answered = async { while let Some(Ok(_)) = stream.next().await {} };
        if timeout(LINGER, answered).await.is_ok() {
            return;
        }
        tracing::debug!("a canvas socket's client did not answer the close");
    }
}

struct Reader {
    stream: SplitStream<WebSocket>,
    peer: String,
    door: Door,
    outbox: Outbox,
    /// What the person may send, on all sockets together.
    messages: Arc<Mutex<Bucket>>,
    /// How often this socket may send too much before it is closed.
    refusals: Bucket,
    /// The writer has ended.
    done: CancellationToken,
    stopping: CancellationToken,
}

impl Reader {
    /// Reads until the client or the server wants no more; what was read before is stored and answered first.
    async fn run(mut self) -> SplitStream<WebSocket> {
        let close = self.read().await;
        let leave = Command::Leave { peer: self.peer.clone(), close };
        if self.door.commands.send(leave).await.is_err() {
            self.outbox.close(self.ended());
        }
        self.stream
    }

    async fn read(&mut self) -> Close {
        let mut pending: Option<Map<String, Value>> = None;
        let mut due = Instant::now();
        loop {
            let message = tokio::select! {
                biased;
                () = self.done.cancelled() => return Close(1000, ""),
                () = self.stopping.cancelled() => return Close::RESTART,
                () = sleep_until(due), if pending.is_some() => {
                    due = Instant::now() + PRESENCE;
                    if let Some(presence) = pending.take() {
                        self.command(Command::Presence { peer: self.peer.clone(), presence }).await;
                    }
                    continue;
                }
                () = self.door.commands.closed() => return self.ended(),
                message = timeout(SILENCE, self.stream.next()) => message,
            };
            let text = match message {
                Err(_) => return Close::SILENT,
                Ok(None | Some(Ok(Message::Close(_)))) => return Close(1000, ""),
                Ok(Some(Err(error))) => return unreadable(&error),
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
                Ok(Some(Ok(Message::Binary(_)))) => return Close::NOT_TEXT,
                Ok(Some(Ok(Message::Text(text)))) => text,
            };
            if text.len() > MESSAGE {
                return Close::TOO_LARGE;
            }
            if let Err(wait) = self.messages.lock().take(quota::cost(text.len()), Instant::now()) {
                metrics::counter!("kaizen_canvas_rate_refusals_total").increment(1);
                if self.refusals.take(1, Instant::now()).is_err() {
                    return Close::FLOOD;
                }
                let refusal = Refusal::rate("from you, on all of your sockets together", wait);
                self.outbox.send(frames::reject(frames::reference(&text).as_deref(), &refusal));
                continue;
            }
            // Before it is read: in memory a message is several times as large as on the wire.
            let Some(place) = self.place(text.len()).await else { continue };
            match frames::read(&text) {
                Ok(Incoming::Presence(presence)) => pending = Some(presence),
                Ok(Incoming::Ops { reference, ops }) => {
                    let text = serde_json::to_string(&ops).unwrap_or_default();
                    self.command(Command::Ops { peer: self.peer.clone(), reference, ops, text, place }).await;
                }
                Err((reference, refusal)) => {
                    self.command(Command::Refuse { peer: self.peer.clone(), reference, refusal }).await;
                }
            }
        }
    }

    /// A place in the room's inbox; while there is none this socket is not read from. None once the writer or the room
    /// has ended.
    async fn place(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        tokio::select! {
            place = self.door.bytes.clone().acquire_many_owned(bytes) => place.ok(),
            () = self.door.commands.closed() => None,
            () = self.done.cancelled() => None,
        }
    }

    /// Hands to the room; while its inbox is full this socket is not read from.
    async fn command(&self, command: Command) {
        let sent = self.done.run_until_cancelled(self.door.commands.send(command)).await;
        if matches!(sent, Some(Err(_))) {
            self.outbox.close(self.ended());
        }
    }

    /// What to close with where the room has ended.
    fn ended(&self) -> Close {
        if self.stopping.is_cancelled() { Close::RESTART } else { Close::DEFECT }
    }
}

/// What to close with after a message that could not be read.
fn unreadable(error: &axum::Error) -> Close {
    // tungstenite's own type is not to be had through axum; a test holds it to these words.
    if error.to_string().starts_with("Space limit exceeded") {
        return Close::TOO_LARGE;
    }
    tracing::debug!(%error, "a canvas socket ended");
    Close(1002, "protocol error")
}

struct Writer {
    sink: SplitSink<WebSocket, Message>,
    outgoing: Outgoing,
    stopping: CancellationToken,
}

impl Writer {
    /// Writes until it has written a close frame, or cannot write any more.
    async fn run(mut self) {
        let mut ping = interval_at(Instant::now() + PING, PING);
        loop {
            let mut next = tokio::select! {
                next = self.outgoing.next() => Some(next),
                _ = ping.tick() => None,
            };
            if next.is_none() && !self.push(Message::Ping(bytes::Bytes::new())).await {
                return self.close(self.outgoing.reason()).await;
            }
            let mut gathered = 0;
            while let Some(out) = next {
                match out {
                    Out::Close(close) => return self.close(close).await,
                    Out::Frame(text) => {
                        gathered += text.len();
                        if !self.push(Message::Text(text)).await {
                            return self.close(self.outgoing.reason()).await;
                        }
                    }
                }
                next = if gathered < WRITE_BUFFER { self.outgoing.ready() } else { None };
            }
            if !self.flush().await {
                return self.close(self.outgoing.reason()).await;
            }
        }
    }

    /// `false` if the socket is to be closed instead, or is broken.
    async fn push(&mut self, message: Message) -> bool {
        let closed = self.outgoing.closed();
        tokio::select! {
            result = self.sink.feed(message) => result.is_ok(),
            () = closed => false,
        }
    }

    async fn flush(&mut self) -> bool {
        let closed = self.outgoing.closed();
        tokio::select! {
            result = self.sink.flush() => result.is_ok(),
            () = closed => false,
        }
    }

    /// A slow reader gets time to take what is on its way already: the close frame comes last.
    async fn close(&mut self, close: Close) {
        // A room that did not come to its end before the server's says nothing itself.
        let restarts = close == Close::DEFECT && self.stopping.is_cancelled();
        let close = if restarts { Close::RESTART } else { close };
        let patience = async {
            tokio::select! {
                () = sleep(STALL) => {}
                () = async { self.stopping.cancelled().await; sleep(STALL_STOPPING).await } => {}
            }
        };
        tokio::select! {
            sent = self.sink.send(frame(close)) => if let Err(error) = sent {
                tracing::debug!(%error, "a canvas socket was gone before it was closed");
            },
            () = patience => {}
        }
    }
}
