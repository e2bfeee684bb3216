//! One socket: what is read goes to the room, what the room says is written, each at its own pace.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Sink, SinkExt, StreamExt, stream::SplitStream};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, interval_at, sleep, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{Error, Message, protocol::CloseFrame};
use tokio_util::sync::CancellationToken;

use super::{
    Canvases, Connect,
    fragments::{Socket, WRITE_BUFFER, fragments},
    frames::{self, Incoming, MESSAGE, Refusal},
    memory,
    outbox::{self, Close, Out, Outbox, Outgoing},
    quota::{self, Bucket, Rate},
    room::{Command, Door},
};

/// Between pings.
const PING: Duration = Duration::from_secs(20);
/// A socket that nothing was heard from for so long, not even the answer to a ping, is closed.
const SILENCE: Duration = Duration::from_secs(60);
/// For a slow reader to take the next of what is on its way to it, the close frame last.
const STALL: Duration = Duration::from_secs(30);
/// The same, once the server stops.
const STALL_STOPPING: Duration = Duration::from_secs(3);
/// For the other side to answer a close frame (RFC 6455, section 7.1.1).
const LINGER: Duration = Duration::from_secs(1);
/// A peer's presence is passed on at most this often: the last it said, what came between is left out.
const PRESENCE: Duration = Duration::from_millis(33);

/// Closes a socket that was never let in.
pub async fn refuse(mut socket: Socket, close: Close) {
    metrics::counter!("kaizen_canvas_closes_total", "code" => close.0.to_string()).increment(1);
    let farewell = async {
        if socket.send(frame(close)).await.is_ok() {
            while let Some(Ok(message)) = socket.next().await {
                if matches!(message, Message::Close(_)) {
                    break;
                }
            }
        }
    };
    drop(timeout(LINGER, farewell).await);
}

fn frame(Close(code, reason): Close) -> Message {
    Message::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }))
}

impl Canvases {
    /// Serves a socket from joining to its end.
    pub async fn serve(&self, socket: Socket, connect: Connect) {
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
        let writer = Writer { sink, outgoing, stopping: self.parts.stopping.clone(), stall: STALL };
        let ((mut stream, read), sink) = tokio::join!(reader.run(), async {
            let sink = writer.run().await;
            done.cancel();
            sink
        });
        // The close frame is on its way; a connection reset now could overtake it.
        let answered = async move {
            while let Some(Ok(_)) = stream.next().await {}
            // The rest of a message that was too large is still to come, and tungstenite reads no more.
            if read == Close::TOO_LARGE
                && let Ok(mut socket) = stream.reunite(sink)
            {
                drop(tokio::io::copy(socket.get_mut(), &mut tokio::io::sink()).await);
            }
        };
        if timeout(LINGER, answered).await.is_ok() {
            return;
        }
        tracing::debug!("a canvas socket's client did not answer the close");
    }
}

struct Reader {
    stream: SplitStream<Socket>,
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
    /// Reads until the client or the server wants no more, and returns why; what was read before is stored and answered first.
    async fn run(mut self) -> (SplitStream<Socket>, Close) {
        let close = self.read().await;
        let leave = Command::Leave { peer: self.peer.clone(), close };
        if self.door.commands.send(leave).await.is_err() {
            self.outbox.close(self.ended());
        }
        (self.stream, close)
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
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => continue,
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
            let Some(place) = self.place(memory::of_message(&text)).await else { continue };
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
        let bytes = u32::try_from(bytes.min(self.door.most)).unwrap_or(u32::MAX);
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
fn unreadable(error: &Error) -> Close {
    match error {
        Error::Capacity(_) => Close::TOO_LARGE,
        Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => Close::LATE,
        _ => {
            tracing::debug!(%error, "a canvas socket ended");
            Close(1002, "protocol error")
        }
    }
}

struct Writer<S> {
    sink: S,
    outgoing: Outgoing,
    stopping: CancellationToken,
    /// For the client to take the next of what is on its way to it.
    stall: Duration,
}

impl<S: Sink<Message, Error = Error> + Unpin> Writer<S> {
    /// Writes until it has written a close frame, or cannot write any more.
    async fn run(mut self) -> S {
        let close = self.write().await;
        self.close(close).await;
        self.sink
    }

    async fn write(&mut self) -> Close {
        let mut ping = interval_at(Instant::now() + PING, PING);
        loop {
            let mut next = tokio::select! {
                next = self.outgoing.next() => Some(next),
                _ = ping.tick() => None,
            };
            if next.is_none()
                && let Err(close) = self.push(Message::Ping(Bytes::new())).await
            {
                return close;
            }
            let mut gathered = 0;
            while let Some(out) = next {
                gathered += out.bytes();
                let pushed = match out {
                    Out::Close(close) => return close,
                    Out::Frame(text) => self.push_all([text.into()]).await,
                    Out::Snapshot(snapshot) => self.push_all(snapshot.parts).await,
                };
                if let Err(close) = pushed {
                    return close;
                }
                next = if gathered < WRITE_BUFFER { self.outgoing.ready() } else { None };
            }
            if let Err(close) = self.flush().await {
                return close;
            }
        }
    }

    async fn push_all<const N: usize>(&mut self, parts: [Bytes; N]) -> Result<(), Close> {
        for frame in fragments(parts) {
            self.push(frame).await?;
        }
        Ok(())
    }

    /// What to close with instead, if the socket is to be closed, is broken, or takes nothing.
    async fn push(&mut self, message: Message) -> Result<(), Close> {
        let closed = self.outgoing.closed();
        tokio::select! {
            result = self.sink.feed(message) => self.written(result),
            () = stalled(self.stall, &self.stopping) => Err(self.give_up()),
            () = closed => Err(self.outgoing.reason()),
        }
    }

    async fn flush(&mut self) -> Result<(), Close> {
        let closed = self.outgoing.closed();
        tokio::select! {
            result = self.sink.flush() => self.written(result),
            () = stalled(self.stall, &self.stopping) => Err(self.give_up()),
            () = closed => Err(self.outgoing.reason()),
        }
    }

    fn written(&self, result: Result<(), Error>) -> Result<(), Close> {
        result.map_err(|error| match error {
            Error::WriteBufferFull(_) => Close::SLOW,
            _ => self.outgoing.reason(),
        })
    }

    /// It had its time: what waits is not kept until it has not taken the close frame either.
    fn give_up(&mut self) -> Close {
        self.stall = LINGER;
        self.outgoing.give_up(Close::SLOW);
        Close::SLOW
    }

    /// A slow reader gets time to take what is on its way already: the close frame comes last.
    async fn close(&mut self, close: Close) {
        // A room that did not come to its end before the server's says nothing itself.
        let restarts = close == Close::DEFECT && self.stopping.is_cancelled();
        let close = if restarts { Close::RESTART } else { close };
        tokio::select! {
            sent = self.sink.send(frame(close)) => if let Err(error) = sent {
                tracing::debug!(%error, "a canvas socket was gone before it was closed");
            },
            () = stalled(self.stall, &self.stopping) => {}
        }
    }
}

/// Ends after `stall`, or sooner once the server stops.
async fn stalled(stall: Duration, stopping: &CancellationToken) {
    tokio::select! {
        () = sleep(stall) => {}
        () = async { stopping.cancelled().await; sleep(STALL_STOPPING).await } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fragments::over, *};

    /// A client that reads nothing, behind a line that takes `window` bytes.
    async fn stalls(window: usize, bytes: usize) {
        let stall = Duration::from_millis(200);
        let (near, far) = tokio::io::duplex(window);
        let (outbox, outgoing) = outbox::pair(8 << 20);
        let (sink, _stream) = over(near, STALL).await.split();
        let writer = Writer { sink, outgoing, stopping: CancellationToken::new(), stall };
        // The canvas is idle: nothing comes after what a newcomer is sent first.
        outbox.welcome(Out::Frame("x".repeat(bytes).into()));
        drop(timeout(Duration::from_secs(60), writer.run()).await.expect("it is given up"));
        assert!(outbox.is_closed(), "the room takes it out");
        drop(far);
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_given_up_on_an_idle_canvas_too() {
        // One waits in the middle of a message, one for a flush at its end.
        stalls(1000, 4 << 20).await;
        stalls(10, 100).await;
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_but_reads_is_sent_everything() {
        let stall = Duration::from_secs(5);
        let (near, far) = tokio::io::duplex(1000);
        let (outbox, outgoing) = outbox::pair(8 << 20);
        let (sink, _stream) = over(near, STALL).await.split();
        let writer = Writer { sink, outgoing, stopping: CancellationToken::new(), stall };
        outbox.welcome(Out::Frame("x".repeat(1 << 20).into()));
        outbox.finish(Close::RESTART);
        let role = tokio_tungstenite::tungstenite::protocol::Role::Client;
        let mut client = tokio_tungstenite::WebSocketStream::from_raw_socket(far, role, None).await;
        let reading = async {
            assert_eq!(client.next().await.unwrap().unwrap().len(), 1 << 20);
            assert!(
                matches!(client.next().await, Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == 1012)
            );
        };
        drop(tokio::join!(writer.run(), reading));
    }
}
