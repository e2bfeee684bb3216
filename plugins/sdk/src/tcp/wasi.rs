//! A connection's way through `wasi:sockets` 0.2. The server's side of it checks the grant and resolves the name.

use std::net::IpAddr;

use wasip2::clocks::monotonic_clock;
use wasip2::io::poll::{Pollable, poll};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress, Network,
};
use wasip2::sockets::tcp::{ShutdownType, TcpSocket};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

use super::{Deadline, Error};

/// How much is written or read at once.
const CHUNK: u64 = 64 * 1024;

/// The streams are children of the socket, so they are dropped before it.
pub(super) struct Stream {
    input: InputStream,
    output: OutputStream,
    socket: TcpSocket,
}

impl Stream {
    pub(super) fn open(host: &str, port: u16, deadline: &Deadline) -> Result<Self, Error> {
        let network = instance_network();
        let mut last = Error::Connect(format!("the name {host} has no address"));
        for address in addresses(&network, host, deadline)? {
            match connect(&network, address, port, deadline) {
                Ok(stream) => return Ok(stream),
                Err(error @ Error::Timeout(_)) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub(super) fn write_all(&mut self, mut rest: &[u8], deadline: &Deadline) -> Result<(), Error> {
        while !rest.is_empty() {
            let room = self.output.check_write().map_err(|error| broken(&error, deadline))?;
            if room == 0 {
                wait(&self.output.subscribe(), deadline)?;
                continue;
            }
            let most = usize::try_from(room.min(CHUNK)).unwrap_or(rest.len()).min(rest.len());
            let (now, later) = rest.split_at(most);
            self.output.write(now).map_err(|error| broken(&error, deadline))?;
            rest = later;
        }
        self.output.flush().map_err(|error| broken(&error, deadline))?;
        // Flushed when there is room again.
        while self.output.check_write().map_err(|error| broken(&error, deadline))? == 0 {
            wait(&self.output.subscribe(), deadline)?;
        }
        Ok(())
    }

    pub(super) fn shutdown(&mut self, deadline: &Deadline) -> Result<(), Error> {
        self.socket.shutdown(ShutdownType::Send).map_err(|code| failed(code, deadline))
    }

    pub(super) fn read(&mut self, deadline: &Deadline) -> Result<usize, Error> {
        loop {
            match self.input.read(CHUNK) {
                Ok(chunk) if chunk.is_empty() => wait(&self.input.subscribe(), deadline)?,
                Ok(chunk) => return Ok(chunk.len()),
                Err(StreamError::Closed) => return Ok(0),
                Err(error) => return Err(broken(&error, deadline)),
            }
        }
    }
}

fn addresses(network: &Network, host: &str, deadline: &Deadline) -> Result<Vec<IpAddress>, Error> {
    match host.parse() {
        Ok(IpAddr::V4(address)) => return Ok(vec![IpAddress::Ipv4(address.octets().into())]),
        Ok(IpAddr::V6(address)) => return Ok(vec![IpAddress::Ipv6(address.segments().into())]),
        Err(_) => {}
    }
    let found = resolve_addresses(network, host).map_err(|code| failed(code, deadline))?;
    let mut addresses = Vec::new();
    loop {
        match found.resolve_next_address() {
            Ok(Some(address)) => addresses.push(address),
            Ok(None) => return Ok(addresses),
            Err(ErrorCode::WouldBlock) => wait(&found.subscribe(), deadline)?,
            Err(code) => return Err(failed(code, deadline)),
        }
    }
}

fn connect(network: &Network, address: IpAddress, port: u16, deadline: &Deadline) -> Result<Stream, Error> {
    let (family, address) = match address {
        IpAddress::Ipv4(address) => (IpAddressFamily::Ipv4, IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address })),
        IpAddress::Ipv6(address) => (
            IpAddressFamily::Ipv6,
            IpSocketAddress::Ipv6(Ipv6SocketAddress { port, flow_info: 0, address, scope_id: 0 }),
        ),
    };
    let socket = create_tcp_socket(family).map_err(|code| failed(code, deadline))?;
    socket.start_connect(network, address).map_err(|code| failed(code, deadline))?;
    loop {
        match socket.finish_connect() {
            Ok((input, output)) => return Ok(Stream { input, output, socket }),
            Err(ErrorCode::WouldBlock) => wait(&socket.subscribe(), deadline)?,
            Err(code) => return Err(failed(code, deadline)),
        }
    }
}

/// Blocks until `ready` is, or the time is over.
fn wait(ready: &Pollable, deadline: &Deadline) -> Result<(), Error> {
    let left = u64::try_from(deadline.left()?.as_nanos()).unwrap_or(u64::MAX);
    let timer = monotonic_clock::subscribe_duration(left);
    if poll(&[ready, &timer]).contains(&0) { Ok(()) } else { Err(deadline.over()) }
}

fn broken(error: &StreamError, deadline: &Deadline) -> Error {
    match error {
        StreamError::Closed => Error::Connect(format!("{} closed the connection", deadline.far)),
        StreamError::LastOperationFailed(_) => Error::Connect(format!("{} broke the connection off", deadline.far)),
    }
}

fn failed(code: ErrorCode, deadline: &Deadline) -> Error {
    let far = &deadline.far;
    match code {
        ErrorCode::AccessDenied => {
            Error::Denied(format!("this plugin is not allowed to reach {far}, or the server's operator refuses it"))
        }
        ErrorCode::ConnectionRefused => Error::Connect(format!("{far} refuses connections")),
        ErrorCode::ConnectionReset | ErrorCode::ConnectionAborted => {
            Error::Connect(format!("{far} broke the connection off"))
        }
        ErrorCode::NameUnresolvable | ErrorCode::PermanentResolverFailure | ErrorCode::TemporaryResolverFailure => {
            Error::Connect(format!("the name in {far} can't be resolved"))
        }
        ErrorCode::Timeout => deadline.over(),
        other => Error::Connect(format!("{far}: {}", other.message())),
    }
}
