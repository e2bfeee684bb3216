//! Threads that wait for the disk of the folders. It may be another machine's and silent, and what waits for a disk cannot be
//! given up: so it waits neither on threads of the runtime nor on those that hash passwords and compile plugins.

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
};

/// The threads. They are left to themselves when it is dropped.
pub(in crate::sandbox) struct Disk {
    threads: Handle,
    runtime: Option<Runtime>,
}

impl Disk {
    /// At most so many.
    ///
    /// # Errors
    /// If the system gives none.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(threads.max(1))
            .thread_name("kaizen-disk")
            .enable_all()
            .build()?;
        Ok(Self { threads: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Does it on one of them, when one is free.
    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        self.threads.spawn_blocking(work)
    }

    /// Where this is entered, what `wasmtime_wasi` does with files waits on these threads.
    pub(in crate::sandbox) fn threads(&self) -> Handle {
        self.threads.clone()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Waiting for its threads is not allowed where this may be dropped: in an async task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
