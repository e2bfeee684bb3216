//! `kaizen policy`: policy sets as files, before they reach a server.

use std::{io::Read, path::PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::{
    authz::{Bounds, Checker, Invalid, without_mark},
    config::limits::ServerLimits,
};

/// Work with policy files
#[derive(Debug, Args)]
pub struct Policy {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Validate policy files against the schema, strictly, as a server with the default limits does
    Check {
        /// Cedar files; `-` reads standard input
        #[arg(required = true, value_name = "FILES")]
        files: Vec<PathBuf>,
    },
}

impl Policy {
    /// Runs to its end; faults go to standard error as `FILE:LINE:COLUMN: error: …`.
    ///
    /// # Errors
    /// If a file cannot be read or does not hold up.
    pub fn run(&self) -> anyhow::Result<()> {
        let Command::Check { files } = &self.command;
        let bounds = Bounds::of(&ServerLimits::default());
        let checker = Checker::new(bounds)?;
        let mut failed = 0;
        for file in files {
            let text = read(file, bounds.text_bytes)?;
            match checker.check(without_mark(&text)) {
                Ok(validated) => {
                    for warning in &validated.warnings {
                        tell(file, warning.line, warning.column, "warning", &warning.message);
                    }
                    super::print(&format!("{}: {} policies, valid", file.display(), validated.policies))?;
                }
                Err(Invalid::Faults(faults)) => {
                    failed += 1;
                    for fault in &faults {
                        tell(file, fault.line, fault.column, "error", &fault.message);
                    }
                }
                Err(undone) => return Err(undone).with_context(|| file.display().to_string()),
            }
        }
        anyhow::ensure!(failed == 0, "{failed} of {} policy files are not valid", files.len());
        Ok(())
    }
}

fn tell(file: &std::path::Path, line: usize, column: usize, what: &str, message: &str) {
    eprintln!("{}:{line}:{column}: {what}: {message}", file.display());
}

/// At most one byte more than is accepted, besides a byte order mark: the check then says so.
fn read(file: &std::path::Path, most: usize) -> anyhow::Result<String> {
    let limit = u64::try_from(most + '\u{feff}'.len_utf8() + 1).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let reading = || file.display().to_string();
    if file.as_os_str() == "-" {
        std::io::stdin().take(limit).read_to_end(&mut bytes).with_context(reading)?;
    } else {
        let opened = std::fs::File::open(file).with_context(reading)?;
        opened.take(limit).read_to_end(&mut bytes).with_context(reading)?;
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        anyhow::bail!("{}: this is UTF-16; save it as UTF-8", file.display());
    }
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{}: not UTF-8 text", file.display()))
}
