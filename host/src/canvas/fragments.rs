//! Messages in fragments (RFC 6455, section 5.4): a socket's buffers stay small however large a message was.
//!
//! tungstenite's buffers grow to the largest frame that was read or written, and never shrink: each socket would keep as much as
//! the whole canvas once it was sent one. So a large message is written in fragments, and a large frame of a client's is given to
//! tungstenite in fragments, as if the client had sent them. Each message still comes out whole, and is held whole until its last
//! fragment has come: [`READ`] bytes at the most, and for [`MESSAGE_TIME`].

use std::{
    io::{self, Cursor},
    iter,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncBufRead, AsyncRead, AsyncWrite, BufReader, ReadBuf},
    time::{Sleep, sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{
            Role, WebSocketConfig,
            frame::{
                Frame, FrameHeader,
                coding::{Data, OpCode},
            },
        },
    },
};

use super::frames::MESSAGE;

/// Bytes of a message that are read at all: enough to tell that it is too large.
const READ: usize = MESSAGE + READ_FRAGMENT;
/// How long a message may take from its first fragment to its last. Control frames, which may come in between, do not put it off.
const MESSAGE_TIME: Duration = Duration::from_secs(30);
/// Bytes that are read from the network at once. tungstenite fills as many with zeros before each read, and keeps them.
const READ_BUFFER: usize = 4 * 1024;
/// Bytes of a fragment that tungstenite reads. A multiple of four: so each begins with the first byte of the client's mask.
const READ_FRAGMENT: usize = 8 * 1024;
/// Bytes that are gathered into one write to the network.
pub const WRITE_BUFFER: usize = 16 * 1024;
/// Bytes of a fragment that is written.
const WRITE_FRAGMENT: usize = 16 * 1024;
/// Bytes that tungstenite may hold for a client that reads nothing: also the answers to its pings, which it may go on sending.
const WRITE_BUFFER_MOST: usize = WRITE_BUFFER + WRITE_FRAGMENT + 16 * 1024;

/// A canvas socket.
pub type Socket = WebSocketStream<Fragmented<TokioIo<Upgraded>>>;

/// The WebSocket on an upgraded connection.
pub async fn accept(upgraded: Upgraded) -> Socket {
    over(TokioIo::new(upgraded), MESSAGE_TIME).await
}

/// The server's end of a WebSocket, on which a message may take as long as `time` to arrive.
pub async fn over<S: AsyncRead + AsyncWrite + Unpin>(io: S, time: Duration) -> WebSocketStream<Fragmented<S>> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(WRITE_BUFFER_MOST)
        .max_message_size(Some(READ))
        .max_frame_size(Some(READ_FRAGMENT));
    WebSocketStream::from_raw_socket(Fragmented::new(io, time), Role::Server, Some(config)).await
}

/// A text message, whose parts follow each other, as the frames to write.
pub fn fragments(parts: impl IntoIterator<Item = Bytes>) -> impl Iterator<Item = Message> {
    let pieces = parts.into_iter().flat_map(|part| {
        let end = part.len();
        (0..end).step_by(WRITE_FRAGMENT).map(move |at| part.slice(at..end.min(at + WRITE_FRAGMENT)))
    });
    let (mut pieces, mut opcode) = (pieces.peekable(), Data::Text);
    iter::from_fn(move || {
        let piece = pieces.next()?;
        let opcode = OpCode::Data(std::mem::replace(&mut opcode, Data::Continue));
        Some(Message::Frame(Frame::message(piece, opcode, pieces.peek().is_none())))
    })
}

/// A client's connection, on which its large frames are read in fragments.
#[derive(Debug)]
pub struct Fragmented<S> {
    io: BufReader<S>,
    frames: Frames,
    /// How long a message may take to arrive.
    time: Duration,
    /// When the one that is being read has taken so long; absent until it has to be waited for.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Where in the client's frames one reads.
#[derive(Debug, Default)]
struct Frames {
    /// What has come of a header.
    header: Vec<u8>,
    /// The header that is to be read next, as far as it was not yet.
    pending: Vec<u8>,
    /// Bytes that are to come of the frame, or the fragment, after its header.
    payload: u64,
    /// After this fragment: the header of the last one, and the bytes of all that follow.
    rest: Option<(FrameHeader, u64)>,
    /// A message has begun, and is not there whole.
    within_message: bool,
    /// This frame, once it is there whole, is the last of its message.
    ends_message: bool,
}

impl<S: AsyncRead> Fragmented<S> {
    fn new(io: S, time: Duration) -> Self {
        let io = BufReader::with_capacity(READ_BUFFER, io);
        Self { io, frames: Frames::default(), time, deadline: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Fragmented<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, frames, time, deadline } = self.get_mut();
        let before = buf.filled().len();
        loop {
            frames.read_header(buf);
            // Once there is something, only what has arrived already is added to it.
            if buf.remaining() == 0 || (buf.filled().len() > before && io.buffer().is_empty()) {
                return Poll::Ready(Ok(()));
            }
            let arrived = match Pin::new(&mut *io).poll_fill_buf(cx) {
                Poll::Ready(arrived) => arrived?,
                // Only here: while the server itself does not read, a message takes no time.
                Poll::Pending if frames.within_message => {
                    let deadline = deadline.get_or_insert_with(|| Box::pin(sleep(*time)));
                    ready!(deadline.as_mut().poll(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Pending => return Poll::Pending,
            };
            if arrived.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let taken = frames.take(arrived, buf);
            Pin::new(&mut *io).consume(taken);
            if !frames.within_message {
                *deadline = None;
            }
        }
    }
}

impl Frames {
    fn read_header(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.pending.len().min(buf.remaining());
        buf.put_slice(self.pending.drain(..count).as_slice());
    }

    /// Takes some of what arrived, and returns how much; a payload goes to `buf`, a header becomes what is pending.
    fn take(&mut self, arrived: &[u8], buf: &mut ReadBuf<'_>) -> usize {
        if self.payload > 0 {
            let payload = usize::try_from(self.payload).unwrap_or(usize::MAX);
            let count = arrived.len().min(buf.remaining()).min(payload);
            buf.put_slice(arrived.get(..count).unwrap_or_default());
            self.payload -= count as u64;
            if self.payload == 0 {
                self.begin_next_fragment();
            }
            return count;
        }
        for (at, byte) in arrived.iter().enumerate() {
            self.header.push(*byte);
            match FrameHeader::parse(&mut Cursor::new(&self.header)) {
                Ok(None) => continue,
                Ok(Some((header, length))) => self.begin(header, length),
                // tungstenite says what is wrong with it, and reads no further.
                Err(_) => {
                    self.payload = u64::MAX;
                    std::mem::swap(&mut self.pending, &mut self.header);
                }
            }
            self.header.clear();
            return at + 1;
        }
        arrived.len()
    }

    /// Begins a frame of the client's. One that is larger than any message is not split: tungstenite refuses it unread.
    fn begin(&mut self, header: FrameHeader, length: u64) {
        let is_data = matches!(header.opcode, OpCode::Data(_));
        self.ends_message = is_data && header.is_final;
        if is_data {
            self.within_message = !header.is_final || length > 0;
        }
        let is_split = length > READ_FRAGMENT as u64 && length <= READ as u64;
        if !is_split || !is_data {
            self.payload = length;
            std::mem::swap(&mut self.pending, &mut self.header);
            return;
        }
        self.begin_fragment(&FrameHeader { is_final: false, ..header.clone() }, READ_FRAGMENT as u64);
        let opcode = OpCode::Data(Data::Continue);
        let last = FrameHeader { rsv1: false, rsv2: false, rsv3: false, opcode, ..header };
        self.rest = Some((last, length - READ_FRAGMENT as u64));
    }

    fn begin_next_fragment(&mut self) {
        let Some((last, rest)) = self.rest.take() else {
            self.within_message &= !self.ends_message;
            return;
        };
        let length = rest.min(READ_FRAGMENT as u64);
        let is_last = length == rest;
        self.begin_fragment(&FrameHeader { is_final: last.is_final && is_last, ..last.clone() }, length);
        if !is_last {
            self.rest = Some((last, rest - length));
        }
    }

    fn begin_fragment(&mut self, header: &FrameHeader, length: u64) {
        // A vector takes whatever is written to it.
        header.format(length, &mut self.pending).unwrap_or_default();
        self.payload = length;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Fragmented<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_tungstenite::tungstenite::{Error, protocol::frame::coding::Control};

    use super::*;

    fn text(bytes: usize) -> String {
        (0..bytes).map(|n| char::from(b'a' + u8::try_from(n % 23).unwrap())).collect()
    }

    async fn client(io: tokio::io::DuplexStream) -> WebSocketStream<tokio::io::DuplexStream> {
        WebSocketStream::from_raw_socket(io, Role::Client, None).await
    }

    /// The length of each frame that is read of what a client wrote.
    async fn lengths(written: &[u8]) -> Vec<u64> {
        let mut read = Vec::new();
        Fragmented::new(written, MESSAGE_TIME).read_to_end(&mut read).await.unwrap();
        let mut cursor = Cursor::new(read.as_slice());
        let mut lengths = Vec::new();
        while let Some((_, length)) = FrameHeader::parse(&mut cursor).unwrap() {
            lengths.push(length);
            cursor.set_position(cursor.position() + length);
        }
        assert_eq!(cursor.position(), read.len() as u64);
        lengths
    }

    #[tokio::test]
    async fn a_large_frame_is_read_in_fragments_and_comes_out_whole() {
        for buffered in [1, 3, 1000, 1 << 20] {
            let (near, far) = tokio::io::duplex(buffered);
            let (mut client, mut server) = (client(far).await, over(near, MESSAGE_TIME).await);
            let sizes =
                [0, 1, 125, 126, READ_FRAGMENT - 1, READ_FRAGMENT, READ_FRAGMENT + 1, 3 * READ_FRAGMENT, MESSAGE + 1];
            let sent = async {
                for size in sizes {
                    client.feed(Message::text(text(size))).await.unwrap();
                    client.feed(Message::Ping(Bytes::from_static(b"between"))).await.unwrap();
                }
                client.flush().await.unwrap();
            };
            let received = async {
                for size in sizes {
                    assert_eq!(server.next().await.unwrap().unwrap(), Message::text(text(size)), "{size}");
                    assert!(matches!(server.next().await, Some(Ok(Message::Ping(_)))), "{size}");
                }
            };
            tokio::join!(sent, received);
        }
    }

    #[tokio::test]
    async fn tungstenite_reads_no_frame_larger_than_a_fragment() {
        let frame = |length: usize, opcode, is_final| {
            let mut written = Vec::new();
            let header = FrameHeader { is_final, opcode, mask: Some([1, 2, 3, 4]), ..FrameHeader::default() };
            header.format(length as u64, &mut written).unwrap();
            written.resize(written.len() + length, b'x');
            written
        };
        let part = READ_FRAGMENT as u64;
        let (data, continued) = (OpCode::Data(Data::Text), OpCode::Data(Data::Continue));
        assert_eq!(lengths(&frame(2 * READ_FRAGMENT + 5, data, true)).await, [part, part, 5]);
        assert_eq!(lengths(&frame(2 * READ_FRAGMENT, data, true)).await, [part, part]);
        assert_eq!(lengths(&[frame(READ_FRAGMENT, data, false), frame(3, continued, true)].concat()).await, [part, 3]);
    }

    #[tokio::test]
    async fn what_is_larger_than_any_message_is_refused_unread() {
        for opcode in [OpCode::Data(Data::Text), OpCode::Control(Control::Ping)] {
            let (near, mut far) = tokio::io::duplex(100);
            let mut header = Vec::new();
            let frame = FrameHeader { opcode, mask: Some([0; 4]), ..FrameHeader::default() };
            frame.format(READ as u64 + 1, &mut header).unwrap();
            far.write_all(&header).await.unwrap();
            assert!(matches!(over(near, MESSAGE_TIME).await.next().await, Some(Err(Error::Capacity(_)))));
        }
    }

    /// A frame of a message, larger or not than what is read at once.
    fn part(bytes: usize, opcode: Data, is_final: bool) -> Message {
        Message::Frame(Frame::message(text(bytes), OpCode::Data(opcode), is_final))
    }

    #[tokio::test]
    async fn a_message_that_does_not_come_to_its_end_is_given_up_whatever_comes_in_between() {
        const TIME: Duration = Duration::from_millis(300);
        for begun in [0, 5, 3 * READ_FRAGMENT] {
            let (near, far) = tokio::io::duplex(4096);
            let (mut client, mut server) = (client(far).await, over(near, TIME).await);
            let sending = async {
                drop(client.send(part(begun, Data::Text, false)).await);
                loop {
                    sleep(TIME / 10).await;
                    drop(client.send(Message::Ping(Bytes::new())).await);
                }
            };
            let receiving = async {
                loop {
                    match server.next().await {
                        Some(Ok(Message::Ping(_))) => {}
                        other => break other,
                    }
                }
            };
            let ended = tokio::select! {
                ended = tokio::time::timeout(100 * TIME, receiving) => ended.expect("it is given up"),
                () = sending => None,
            };
            let Some(Err(Error::Io(error))) = ended else { panic!("{begun}: {ended:?}") };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{begun}");
        }
    }

    #[tokio::test]
    async fn each_message_has_its_own_time() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (mut client, mut server) = (client(far).await, over(near, Duration::from_secs(600)).await);
        client.send(part(5, Data::Text, false)).await.unwrap();
        assert!(futures::poll!(server.next()).is_pending());
        assert!(server.get_ref().deadline.is_some(), "the rest is waited for");
        // The first message's end and the next one's beginning come at once.
        client.feed(part(2 * READ_FRAGMENT, Data::Continue, true)).await.unwrap();
        client.feed(part(READ_FRAGMENT + 1, Data::Text, false)).await.unwrap();
        client.flush().await.unwrap();
        let first = server.next().await.unwrap().unwrap();
        assert_eq!(first.len(), 5 + 2 * READ_FRAGMENT);
        assert!(server.get_ref().deadline.is_none(), "nothing of the next one had to be waited for");
        client.send(part(0, Data::Continue, true)).await.unwrap();
        assert_eq!(server.next().await.unwrap().unwrap().len(), READ_FRAGMENT + 1);
        assert!(futures::poll!(server.next()).is_pending());
        assert!(server.get_ref().deadline.is_none(), "between messages there is none");
    }

    #[tokio::test]
    async fn a_message_in_fragments_is_held_up_to_what_tells_that_it_is_too_large() {
        let (near, far) = tokio::io::duplex(4096);
        let (mut client, mut server) = (client(far).await, over(near, MESSAGE_TIME).await);
        let sending = async {
            for n in 0..=READ / READ_FRAGMENT {
                let opcode = if n == 0 { Data::Text } else { Data::Continue };
                drop(client.send(part(READ_FRAGMENT, opcode, false)).await);
            }
        };
        let ((), refused) = tokio::join!(sending, async {
            let refused = server.next().await;
            drop(server);
            refused
        });
        assert!(matches!(refused, Some(Err(Error::Capacity(_)))), "{refused:?}");
    }

    #[tokio::test]
    async fn a_large_message_is_written_in_fragments_and_comes_out_whole() {
        for sizes in [vec![5], vec![WRITE_FRAGMENT], vec![40, 3 * WRITE_FRAGMENT + 1, 7]] {
            let parts: Vec<Bytes> = sizes.iter().map(|size| text(*size).into()).collect();
            let whole = String::from_utf8(parts.concat()).unwrap();
            let frames: Vec<Message> = fragments(parts).collect();
            assert!(frames.iter().all(|frame| frame.len() <= WRITE_FRAGMENT + 14));
            let (near, far) = tokio::io::duplex(1000);
            let (mut client, mut server) = (client(far).await, over(near, MESSAGE_TIME).await);
            let sent = async {
                for frame in frames {
                    server.feed(frame).await.unwrap();
                }
                server.flush().await.unwrap();
            };
            let ((), received) = tokio::join!(sent, client.next());
            assert_eq!(received.unwrap().unwrap(), Message::text(whole));
        }
    }

    #[tokio::test]
    async fn answers_to_pings_that_are_not_read_are_bounded() {
        let (near, far) = tokio::io::duplex(4096);
        let (mut client, mut server) = (client(far).await, over(near, MESSAGE_TIME).await);
        let ping = || Message::Ping(Bytes::from_static(&[b'x'; 125]));
        for _ in 0..5000 {
            client.send(ping()).await.unwrap();
            assert!(matches!(server.next().await, Some(Ok(Message::Ping(_)))));
        }
        // Its buffers, among others, as text: a byte of them takes five characters.
        let held = format!("{server:?}").len();
        assert!(held < 6 * (WRITE_BUFFER_MOST + 16 * 1024), "{held}");
        assert!(matches!(server.send(ping()).await, Err(Error::WriteBufferFull(_))));
    }
}
