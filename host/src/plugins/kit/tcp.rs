//! A far side for `tcp` capabilities: a listener on loopback, since `wasi:sockets` makes real connections.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

use super::{far_side::FarSide, situation::Situation};

/// Where it listens.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A port on which nothing listens.
///
/// # Errors
/// If there is none.
pub async fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((ADDRESS, 0)).await?.local_addr()?.port())
}

/// Listens on a port, in a situation, until the handle is dropped; `None` where nothing is to listen.
///
/// # Errors
/// If the port is taken, or not for this user.
pub fn listen(situation: Situation, port: u16, far_side: Arc<FarSide>) -> io::Result<Option<AbortOnDropHandle<()>>> {
    if situation == Situation::NoConnection {
        // The system refuses; nobody else can count it.
        far_side.contacted();
        return Ok(None);
    }
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    if situation == Situation::Drip {
        // Or the system takes it all in before anybody reads.
        socket.set_recv_buffer_size(2 << 10)?;
    }
    socket.bind(SocketAddr::new(ADDRESS, port))?;
    let listener = socket.listen(16)?;
    Ok(Some(AbortOnDropHandle::new(tokio::spawn(async move {
        let mut held = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            far_side.contacted();
            held.spawn(take(situation, stream));
        }
    }))))
}

async fn take(situation: Situation, mut stream: TcpStream) {
    let mut buffer = vec![0; if situation == Situation::Drip { 1 } else { 64 << 10 }];
    while let Ok(1..) = stream.read(&mut buffer).await {
        match situation {
            Situation::Cut => {
                // At once and without a farewell, as a crashed machine's successor would.
                drop(stream.set_zero_linger());
                return;
            }
            Situation::Drip => tokio::time::sleep(Duration::from_millis(100)).await,
            _ => {}
        }
    }
}
