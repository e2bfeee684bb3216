//! `kaizen plugin compile`: what the server starts to compile a plugin within limits.

use clap::Args;

use crate::sandbox::compiler::compile_standard_input;

/// Compile the component on standard input, within limits, for the server that started this
#[derive(Debug, Args)]
pub struct Compile {
    /// Bytes of address space
    #[arg(long)]
    memory_bytes: u64,
    /// Processor time, seconds
    #[arg(long)]
    cpu_seconds: u64,
}

impl Compile {
    /// Writes machine code to standard output.
    ///
    /// # Errors
    /// What is wrong with the component.
    pub fn run(self) -> anyhow::Result<()> {
        compile_standard_input(self.memory_bytes, self.cpu_seconds)
    }
}
