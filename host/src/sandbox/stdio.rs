//! Standard output and error of a guest: lines in the operator's log, within the log's limits.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll},
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::{
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

use super::{context::Context, mask::Mask};

/// A line that has not ended is handed on at this length.
const LINE: usize = 1024;

/// One of the two streams.
#[derive(Clone)]
pub(super) struct Lines {
    context: Arc<Context>,
    unfinished: Arc<Mutex<Unfinished>>,
}

/// What has not become a line yet.
struct Unfinished {
    /// Before anything is cut into lines: half a secret would not be found any more.
    mask: Mask,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn new(context: Arc<Context>) -> Self {
        let unfinished = Unfinished { mask: context.vault.mask_stream(), line: Vec::new() };
        Self { context, unfinished: Arc::new(Mutex::new(unfinished)) }
    }

    fn take(&self, bytes: &[u8]) {
        #[cfg(test)]
        self.context.keep(bytes);
        let mut unfinished = self.unfinished.lock();
        let Unfinished { mask, line } = &mut *unfinished;
        for byte in mask.push(bytes) {
            if byte != b'\n' {
                line.push(byte);
            }
            if byte == b'\n' || line.len() >= LINE {
                if !line.is_empty() {
                    self.context.wrote(&String::from_utf8_lossy(line));
                }
                line.clear();
            }
        }
    }
}

impl IsTerminal for Lines {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Lines {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Lines {
    async fn ready(&mut self) {}
}

impl OutputStream for Lines {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(8 << 10)
    }
}

impl AsyncWrite for Lines {
    fn poll_write(self: Pin<&mut Self>, _: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
