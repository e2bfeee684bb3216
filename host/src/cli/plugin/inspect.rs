//! `kaizen plugin inspect`: what is inside a component, also one that the server would refuse.

use std::{fmt::Write as _, path::PathBuf};

use clap::Args;
use wasmparser::{Encoding, Parser, Payload};

use super::{load, size};

/// Modules and components inside that are listed.
const LISTED: usize = 200;

/// Show what is inside any component: imports, exports, sizes, nested modules, WIT
#[derive(Debug, Args)]
pub struct Inspect {
    /// The component, or the name of a bundled plugin
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// Print its whole WIT, with the packages that it uses
    #[arg(long)]
    wit: bool,
}

/// A module or component, and what is in it.
#[derive(Default)]
struct Part {
    depth: usize,
    what: &'static str,
    bytes: usize,
    functions: u32,
    code: usize,
    data: usize,
    memories: Vec<String>,
    custom: Vec<String>,
}

impl Inspect {
    /// Runs to its end.
    ///
    /// # Errors
    /// If it is no WebAssembly at all.
    pub fn run(self) -> anyhow::Result<()> {
        let (origin, wasm) = load::bytes(&self.file)?;
        let mut text = String::new();
        writeln!(text, "{origin}: {}", size(wasm.len()))?;
        let (parts, broken) = parts(wasm);
        anyhow::ensure!(!parts.is_empty(), "{origin}: not WebAssembly: {}", broken.unwrap_or_default());
        writeln!(text, "\ninside")?;
        for part in parts.iter().take(LISTED) {
            writeln!(text, "{}{}", "  ".repeat(part.depth + 1), part.line())?;
        }
        if parts.len() > LISTED {
            writeln!(text, "  and {} more", parts.len() - LISTED)?;
        }
        match (&broken, parts.first()) {
            (Some(why), _) => writeln!(text, "\nIt breaks off: {why}")?,
            (None, Some(Part { what: "module", .. })) => {
                writeln!(
                    text,
                    "\nIt is a core module, not a component: build for wasm32-wasip2, or make a component of it."
                )?;
            }
            _ => self.interfaces(&mut text, wasm)?,
        }
        super::super::print(super::lines(&text).trim_end())
    }

    fn interfaces(&self, text: &mut String, wasm: &[u8]) -> anyhow::Result<()> {
        let decoded = match wit_component::decode(wasm) {
            Ok(decoded) => decoded,
            Err(error) => {
                writeln!(text, "\nIts interfaces cannot be read: {error:#}")?;
                return Ok(());
            }
        };
        let resolve = decoded.resolve();
        let main = decoded.package();
        let mut printer = wit_component::WitPrinter::default();
        if self.wit {
            let others: Vec<_> = resolve.packages.iter().map(|(id, _)| id).filter(|id| *id != main).collect();
            printer.print(resolve, main, &others)?;
        } else {
            printer.print(resolve, main, &[])?;
        }
        writeln!(text, "\n{}", printer.output.to_string().trim_end())?;
        Ok(())
    }
}

impl Part {
    fn line(&self) -> String {
        let mut line = format!("{}, {}", self.what, size(self.bytes));
        // Writing to a String does not fail.
        if self.functions > 0 {
            let _ = write!(line, ": {} functions, code {}, data {}", self.functions, size(self.code), size(self.data));
        }
        for memory in &self.memories {
            let _ = write!(line, ", memory {memory}");
        }
        if !self.custom.is_empty() {
            let _ = write!(line, "; custom sections: {}", self.custom.join(", "));
        }
        line
    }
}

/// Every module and component inside, and why reading ended early if it did.
fn parts(wasm: &[u8]) -> (Vec<Part>, Option<String>) {
    let mut parts: Vec<Part> = Vec::new();
    // Positions in `parts` of what is open; a payload belongs to the innermost.
    let mut open: Vec<usize> = Vec::new();
    let mut bytes = wasm.len();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = match payload {
            Ok(payload) => payload,
            Err(error) => {
                // Some are of several lines.
                let why = error.to_string();
                return (parts, Some(why.split_whitespace().collect::<Vec<_>>().join(" ")));
            }
        };
        match &payload {
            Payload::Version { encoding, .. } => {
                let what = if *encoding == Encoding::Module { "module" } else { "component" };
                open.push(parts.len());
                parts.push(Part { depth: open.len() - 1, what, bytes, ..Part::default() });
            }
            Payload::ModuleSection { unchecked_range, .. } | Payload::ComponentSection { unchecked_range, .. } => {
                bytes = length(unchecked_range);
            }
            Payload::End(_) => {
                open.pop();
            }
            _ => {
                if let Some(part) = open.last().and_then(|at| parts.get_mut(*at)) {
                    part.add(&payload);
                }
            }
        }
    }
    (parts, None)
}

impl Part {
    fn add(&mut self, payload: &Payload<'_>) {
        match payload {
            Payload::CodeSectionStart { count, size, .. } => {
                self.functions += count;
                self.code += usize::try_from(*size).unwrap_or(usize::MAX);
            }
            Payload::DataSection(section) => self.data += length(&section.range()),
            Payload::MemorySection(section) => {
                for memory in section.clone().into_iter().flatten() {
                    let most = memory.maximum.map_or("no maximum".to_owned(), |most| format!("at most {most}"));
                    self.memories.push(format!("{} pages of 64 KiB, {most}", memory.initial));
                }
            }
            Payload::CustomSection(section) if self.custom.len() < 20 => {
                let name: String = section.name().chars().filter(|c| !c.is_control()).take(40).collect();
                self.custom.push(format!("{name} ({})", size(section.data().len())));
            }
            _ => {}
        }
    }
}

fn length(range: &std::ops::Range<u64>) -> usize {
    usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX)
}
