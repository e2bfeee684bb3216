//! A connection over TCP, for far sides that speak no HTTP. It needs [`Capability::Tcp`](crate::Capability::Tcp).
//!
//! ```no_run
//! # use std::time::Duration;
//! # use kaizen_plugin::tcp::Connection;
//! # fn example() -> kaizen_plugin::Result<()> {
//! let mut connection = Connection::open("logs.example.com", 6514, Duration::from_secs(10))?;
//! connection.write_all(b"hello")?;
//! connection.finish()?; // everything was read by the far side
//! # Ok(())
//! # }
//! ```
//! The connection has one deadline, for everything from the name's resolution to the end.

use std::time::{Duration, Instant};

#[cfg(not(target_os = "wasi"))]
#[path = "tcp/native.rs"]
mod platform;
#[cfg(target_os = "wasi")]
#[path = "tcp/wasi.rs"]
mod platform;

/// What a far side may still say before it closes; more is not waited for.
const LAST_WORDS: usize = 64 * 1024;

/// Why a connection does not do what it should. It converts into a [`crate::Error`]: an address that the plugin may not
/// reach is [`Config`](crate::Error::Config), all else may pass by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server doesn't let the plugin go there.
    #[error("{0}")]
    Denied(String),
    /// No connection, or it broke.
    #[error("{0}")]
    Connect(String),
    /// It took too long.
    #[error("{0}")]
    Timeout(String),
}

impl From<Error> for crate::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Denied(message) => Self::Config(message),
            Error::Connect(message) | Error::Timeout(message) => Self::unavailable(message),
        }
    }
}

/// Until when, and what to say afterwards.
#[derive(Debug, Clone)]
struct Deadline {
    at: Instant,
    timeout: Duration,
    /// `host:port`.
    far: String,
}

impl Deadline {
    /// What is left.
    fn left(&self) -> Result<Duration, Error> {
        match self.at.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(self.over()),
        }
    }

    fn over(&self) -> Error {
        Error::Timeout(format!("{} did not do its part within {} ms", self.far, self.timeout.as_millis()))
    }
}

/// An open connection; closed when dropped.
pub struct Connection {
    stream: platform::Stream,
    deadline: Deadline,
}

impl Connection {
    /// Connects to a host (a name, or an address with or without brackets) within `timeout`, which is for the whole
    /// life of the connection.
    ///
    /// # Errors
    /// If there is no connection.
    pub fn open(host: &str, port: u16, timeout: Duration) -> Result<Self, Error> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let far = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let deadline = Deadline { at: Instant::now() + timeout, timeout, far };
        Ok(Self { stream: platform::Stream::open(host, port, &deadline)?, deadline })
    }

    /// Writes all of it. That it was written doesn't say that it arrived: see [`Connection::finish`].
    ///
    /// # Errors
    /// If the connection broke.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.write_all(bytes, &self.deadline)
    }

    /// Says that nothing more comes, and waits until the far side closes too: it does so when it has read everything, and
    /// a connection that it broke off in between is an error.
    ///
    /// # Errors
    /// If the far side did not come that far.
    pub fn finish(mut self) -> Result<(), Error> {
        self.stream.shutdown(&self.deadline)?;
        let mut said = 0;
        loop {
            match self.stream.read(&self.deadline)? {
                0 => return Ok(()),
                more => said += more,
            }
            if said > LAST_WORDS {
                return Err(Error::Connect(format!("{} goes on talking instead of closing", self.deadline.far)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn what_was_written_has_been_read_when_it_is_finished() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let reading = thread::spawn(move || {
            let (mut far, _) = listener.accept().unwrap();
            let mut read = Vec::new();
            far.read_to_end(&mut read).unwrap();
            far.write_all(b"bye").unwrap();
            read
        });
        let mut connection = Connection::open("127.0.0.1", port, PATIENCE).unwrap();
        connection.write_all(&[7; 300_000]).unwrap();
        connection.finish().unwrap();
        assert_eq!(reading.join().unwrap(), vec![7; 300_000]);
    }

    #[test]
    fn a_connection_that_is_broken_off_is_not_finished() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        // Closed with unread bytes: the system sends a reset.
        let far = thread::spawn(move || {
            let (far, _) = listener.accept().unwrap();
            wait.recv().unwrap();
            drop(far);
        });
        let mut connection = Connection::open("127.0.0.1", port, PATIENCE).unwrap();
        connection.write_all(b"never read").unwrap();
        go.send(()).unwrap();
        far.join().unwrap();
        assert!(matches!(connection.finish(), Err(Error::Connect(_))));
        assert!(
            matches!(Connection::open("127.0.0.1", port, PATIENCE), Err(Error::Connect(why)) if why.contains(&port.to_string()))
        );
    }

    #[test]
    fn a_far_side_that_never_closes_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connection = Connection::open("127.0.0.1", port, Duration::from_millis(50)).unwrap();
        let error = connection.finish().unwrap_err();
        assert!(matches!(error, Error::Timeout(_)), "{error}");
        assert!(matches!(crate::Error::from(error), crate::Error::Unavailable { .. }));
        drop(listener);
    }
}
