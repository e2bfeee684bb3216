//! On the machine itself, for unit tests: the standard library.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream, ToSocketAddrs as _};

use super::{Deadline, Error};

pub(super) struct Stream(TcpStream);

impl Stream {
    pub(super) fn open(host: &str, port: u16, deadline: &Deadline) -> Result<Self, Error> {
        let addresses = (host, port).to_socket_addrs().map_err(|error| failed(&error, deadline))?;
        let mut last = Error::Connect(format!("the name {host} has no address"));
        for address in addresses {
            match TcpStream::connect_timeout(&address, deadline.left()?) {
                Ok(stream) => return Ok(Self(stream)),
                Err(error) => last = failed(&error, deadline),
            }
        }
        Err(last)
    }

    pub(super) fn write_all(&mut self, bytes: &[u8], deadline: &Deadline) -> Result<(), Error> {
        self.0
            .set_write_timeout(Some(deadline.left()?))
            .and_then(|()| self.0.write_all(bytes))
            .map_err(|error| failed(&error, deadline))
    }

    pub(super) fn shutdown(&mut self, deadline: &Deadline) -> Result<(), Error> {
        self.0.shutdown(Shutdown::Write).map_err(|error| failed(&error, deadline))
    }

    pub(super) fn read(&mut self, deadline: &Deadline) -> Result<usize, Error> {
        self.0
            .set_read_timeout(Some(deadline.left()?))
            .and_then(|()| self.0.read(&mut [0; 4096]))
            .map_err(|error| failed(&error, deadline))
    }
}

fn failed(error: &io::Error, deadline: &Deadline) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => deadline.over(),
        _ => Error::Connect(format!("{}: {error}", deadline.far)),
    }
}
