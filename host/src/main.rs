//! The command line.

use std::{io::Write, process::ExitCode};

// glibc's allocator holds on to memory of many threads; see host/benches/README.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match kaizen::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, causes included; where standard error is gone there is nobody to tell.
            drop(writeln!(std::io::stderr(), "kaizen: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
