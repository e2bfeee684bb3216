//! From a component to machine code: in a process of its own, because nothing can stop a compilation, and what a component
//! says decides how long it takes and how much memory it needs.
//!
//! The process is this program again, `kaizen plugin compile`: it bounds its own memory and processor time (`setrlimit`),
//! stands back behind everything else (`nice`), reads a component and writes machine code. It knows no setting, no key and no
//! file.

use std::{
    io::{Read, Write},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, nice, setrlimit};
use wasmtime::Engine;

use super::{engine, limits::Bounds};

/// Bytes of machine code that are taken.
const LARGEST: u64 = 2 << 30;
/// Bytes that are kept of what the process says of a failure.
const WORDS: u64 = 4 << 10;
/// How far the process stands back.
const NICE: i32 = 10;

/// Where components are compiled.
#[derive(Debug, Clone)]
pub enum Compiler {
    /// In this process, without limits: for tests, and for people who compile what they wrote themselves.
    Here,
    /// In a process of its own.
    Apart(Apart),
}

/// How a process that compiles is started, and what it may take.
#[derive(Debug, Clone)]
pub struct Apart {
    executable: PathBuf,
    memory_bytes: u64,
    cpu: Duration,
    wall: Duration,
}

impl Compiler {
    /// In a process of `executable`, which is this program, within these bounds.
    pub fn apart(executable: PathBuf, bounds: &Bounds) -> Self {
        Compiler::Apart(Apart {
            executable,
            memory_bytes: bounds.compile_memory_bytes,
            cpu: bounds.compile_cpu,
            wall: bounds.compile_wall,
        })
    }

    /// Machine code for `engine`. Blocks, for up to minutes.
    ///
    /// # Errors
    /// What is wrong with the component, or which limit its compilation met.
    pub(super) fn compile(&self, engine: &Engine, wasm: &[u8]) -> wasmtime::Result<Vec<u8>> {
        match self {
            Compiler::Here => engine.precompile_component(wasm),
            Compiler::Apart(apart) => apart.compile(wasm).map_err(wasmtime::Error::msg),
        }
    }
}

impl Apart {
    fn compile(&self, wasm: &[u8]) -> Result<Vec<u8>, String> {
        let started = Command::new(&self.executable)
            .args(["plugin", "compile"])
            .args(["--memory-bytes", &self.memory_bytes.to_string()])
            .args(["--cpu-seconds", &self.cpu.as_secs().max(1).to_string()])
            .env_clear()
            // Threads need address space, and one component must not have all processors.
            .env("RAYON_NUM_THREADS", "2")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = started.map_err(|error| format!("the process that compiles does not start: {error}"))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut input), Some(output), Some(errors)) = pipes else {
            return Err("the process that compiles has no pipes".into());
        };
        let child = Arc::new(Mutex::new(child));
        let (done, ends) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                // It ends early where it finds a fault early.
                drop(input.write_all(wasm));
            });
            let errors = scope.spawn(move || read(errors, WORDS));
            let watched = child.clone();
            let late = scope.spawn(move || {
                let late = ends.recv_timeout(self.wall) == Err(mpsc::RecvTimeoutError::Timeout);
                if late {
                    drop(watched.lock().kill());
                }
                late
            });
            let compiled = read(output, LARGEST.saturating_add(1));
            // It has closed its output, by itself or killed, or says more than is taken.
            if compiled.len() as u64 > LARGEST {
                drop(child.lock().kill());
            }
            let status = end(&child);
            drop(done);
            let late = late.join().unwrap_or_default();
            let said = String::from_utf8_lossy(&errors.join().unwrap_or_default()).into_owned();
            self.judge(status, late, &said)?;
            Ok(compiled)
        })
    }

    fn judge(&self, status: std::io::Result<ExitStatus>, late: bool, said: &str) -> Result<(), String> {
        use std::os::unix::process::ExitStatusExt as _;
        let status = status.map_err(|error| format!("the process that compiles is lost: {error}"))?;
        if status.success() {
            return Ok(());
        }
        if late {
            return Err(format!(
                "it takes longer than {} s to compile (`plugin_compile_seconds`)",
                self.wall.as_secs()
            ));
        }
        if status.signal() == Some(rustix::process::Signal::XCPU.as_raw()) {
            let most = self.cpu.as_secs();
            return Err(format!(
                "it takes more than {most} s of processor time to compile (`plugin_compile_cpu_seconds`)"
            ));
        }
        match said.lines().next() {
            Some(line) if status.code() == Some(1) => Err(line.trim_start_matches("kaizen: ").to_owned()),
            _ => Err(format!(
                "its compilation ended with {status}, perhaps for want of memory: {} MiB (`plugin_compile_memory_mib`) are allowed",
                self.memory_bytes >> 20
            )),
        }
    }
}

/// Waits for the end, and lets others kill it meanwhile.
fn end(child: &Mutex<Child>) -> std::io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.lock().try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn read(from: impl Read, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut limited = from.take(most);
    drop(limited.read_to_end(&mut bytes));
    // What is more than that is not kept, and must not keep the other side waiting.
    drop(std::io::copy(&mut limited.into_inner().take(1 << 20), &mut std::io::sink()));
    bytes
}

/// What the process does: bounds itself, reads a component from standard input and writes its machine code.
///
/// # Errors
/// What is wrong with the component.
pub fn compile_standard_input(memory_bytes: u64, cpu_seconds: u64) -> anyhow::Result<()> {
    let most = |bound: u64| Rlimit { current: Some(bound), maximum: Some(bound) };
    setrlimit(Resource::As, most(memory_bytes))?;
    setrlimit(Resource::Cpu, Rlimit { current: Some(cpu_seconds), maximum: Some(cpu_seconds.saturating_add(1)) })?;
    setrlimit(Resource::Core, most(0))?;
    nice(NICE)?;
    let mut wasm = Vec::new();
    std::io::stdin().lock().read_to_end(&mut wasm)?;
    let engine = engine::for_compiling().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let compiled = engine.precompile_component(&wasm).map_err(|error| anyhow::anyhow!("{}", error.root_cause()))?;
    let mut output = std::io::stdout().lock();
    output.write_all(&compiled)?;
    Ok(output.flush()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _};

    use super::*;

    /// Something else in this program's place.
    fn apart(script: &str, wall: Duration) -> (tempfile::TempDir, Apart) {
        let folder = tempfile::tempdir().unwrap();
        let executable = folder.path().join("compile");
        std::fs::write(&executable, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&executable, std::fs::Permissions::from_mode(0o700)).unwrap();
        let (memory_bytes, cpu) = (1 << 30, Duration::from_secs(7));
        (folder, Apart { executable, memory_bytes, cpu, wall })
    }

    #[test]
    fn a_process_that_takes_too_long_is_ended_and_what_it_says_is_told() {
        let minute = Duration::from_secs(60);
        let (_folder, slow) = apart("exec /bin/sleep 600", Duration::from_millis(50));
        // More than a pipe holds, and nobody reads it.
        let error = slow.compile(&vec![0; 1 << 20]).unwrap_err();
        assert!(error.contains("plugin_compile_seconds"), "{error}");
        let (_folder, bad) =
            apart("/bin/cat > /dev/null; echo 'kaizen: magic header not detected' >&2; exit 1", minute);
        assert_eq!(bad.compile(b"x").unwrap_err(), "magic header not detected");
        let (_folder, good) = apart("exec /bin/cat", minute);
        assert_eq!(good.compile(&vec![7; 1 << 20]).unwrap(), vec![7; 1 << 20]);
        let judged =
            |raw: i32| good.judge(Ok(ExitStatus::from_raw(raw)), false, "memory allocation failed").unwrap_err();
        assert!(judged(rustix::process::Signal::XCPU.as_raw()).contains("more than 7 s of processor time"));
        assert!(judged(rustix::process::Signal::ABORT.as_raw()).contains("1024 MiB (`plugin_compile_memory_mib`)"));
    }
}
