//! `kaizen plugin build`: the language's usual tool, called the usual way.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use clap::Args;

use super::size;

const TARGET: &str = "wasm32-wasip2";
/// The oldest Node.js that componentize-js runs on.
const NODE: u32 = 20;
/// The oldest Python that componentize-py runs on.
const PYTHON: (u32, u32) = (3, 10);

/// Build a plugin with its language's own tool: cargo, componentize-js or componentize-py
#[derive(Debug, Args)]
pub struct Build {
    /// The project
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Where to write the component [default: dist/NAME.wasm in the project]
    #[arg(long, short, value_name = "FILE.wasm")]
    out: Option<PathBuf>,
}

impl Build {
    /// Runs to its end.
    ///
    /// # Errors
    /// If a tool is missing, in words that say what to install, or fails.
    pub fn run(&self) -> anyhow::Result<()> {
        let folder = self.folder.canonicalize().with_context(|| {
            format!("{}: expected a plugin's folder, as `kaizen plugin new` makes it", self.folder.display())
        })?;
        let has = |name: &str| folder.join(name).is_file();
        let out = match &self.out {
            Some(out) => std::path::absolute(out)?,
            None => folder.join("dist").join(format!("{}.wasm", name(&folder)?)),
        };
        if let Some(parent) = out.parent() {
            fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        if has("Cargo.toml") {
            rust(&folder, &out)?;
        } else if has("package.json") {
            typescript(&folder, &out)?;
        } else if has("requirements.txt") && has("app.py") {
            python(&folder, &out)?;
        } else {
            anyhow::bail!(
                "{} is no plugin's project: expected Cargo.toml (Rust), package.json (TypeScript), or requirements.txt and \
                 app.py (Python); `kaizen plugin new` makes one",
                self.folder.display()
            );
        }
        let length = usize::try_from(fs::metadata(&out).with_context(|| out.display().to_string())?.len())?;
        // As people can go on with it, where it is below this folder.
        let shown = std::env::current_dir().ok().and_then(|here| out.strip_prefix(here).ok().map(Path::to_owned));
        super::super::print(&format!("{} ({})", shown.unwrap_or(out).display(), size(length)))
    }
}

/// The project's name, which is the folder's if it does not say.
fn name(folder: &Path) -> anyhow::Result<String> {
    let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
    let cargo = read("Cargo.toml").and_then(|text| text.parse::<toml::Table>().ok());
    let cargo = cargo.and_then(|table| Some(table.get("package")?.get("name")?.as_str()?.to_owned()));
    let npm = read("package.json").and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let npm = npm.and_then(|json| Some(json.get("name")?.as_str()?.rsplit('/').next()?.to_owned()));
    let own = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    cargo.or(npm).or(own).with_context(|| format!("{} has no name", folder.display()))
}

fn rust(folder: &Path, out: &Path) -> anyhow::Result<()> {
    let install = "install Rust from https://rustup.rs";
    said("rustc", folder, &["--version"], install)?;
    let libraries = said("rustc", folder, &["--print", "target-libdir", "--target", TARGET], install)?;
    anyhow::ensure!(
        Path::new(libraries.trim()).is_dir(),
        "Rust has no target {TARGET} here: run `rustup target add {TARGET}`"
    );
    let mut cargo = Command::new("cargo");
    cargo.current_dir(folder).stdout(Stdio::piped());
    cargo.args(["build", "--release", "--target", TARGET, "--message-format=json-render-diagnostics"]);
    let output = cargo.spawn().and_then(std::process::Child::wait_with_output).context(install)?;
    anyhow::ensure!(output.status.success(), "cargo could not build it ({})", output.status);
    let built = String::from_utf8_lossy(&output.stdout).lines().filter_map(component).next_back();
    let built = built.context("cargo made no component: `[lib]` in Cargo.toml needs `crate-type = [\"cdylib\"]`")?;
    fs::copy(&built, out).with_context(|| built.clone())?;
    Ok(())
}

/// The `.wasm` file that a line of cargo's messages tells of.
fn component(line: &str) -> Option<String> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let library = message.get("target")?.get("crate_types")?.as_array()?.iter().any(|kind| kind == "cdylib");
    let files = message.get("filenames")?.as_array()?;
    files
        .iter()
        .filter(|_| library)
        .find_map(|file| file.as_str().filter(|file| file.ends_with(".wasm")).map(str::to_owned))
}

fn typescript(folder: &Path, out: &Path) -> anyhow::Result<()> {
    let install = format!("install Node.js {NODE} or later from https://nodejs.org");
    let version = said("node", folder, &["--version"], &install)?;
    let major = version.trim().trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    anyhow::ensure!(major.is_some_and(|major| major >= NODE), "Node.js {} is too old: {install}", version.trim());
    if !folder.join("node_modules/@bytecodealliance/componentize-js").is_dir() {
        let how = if folder.join("package-lock.json").is_file() { "ci" } else { "install" };
        run(
            "npm",
            folder,
            &[how, "--no-audit", "--no-fund", "--loglevel=error"],
            &install,
            "it could not install what package.json names, from the registry that `npm config get registry` shows",
        )?;
    }
    let failed = "what is wrong stands above; if it is a tool itself, remove the folder node_modules and build again";
    run("node", folder, &[OsStr::new("build.mjs"), out.as_os_str()], &install, failed)
}

fn python(folder: &Path, out: &Path) -> anyhow::Result<()> {
    let (major, minor) = PYTHON;
    let install = format!("install Python {major}.{minor} or later from https://www.python.org");
    let tool = folder.join(".venv/bin/componentize-py");
    if !tool.is_file() {
        let version = said("python3", folder, &["-c", "import sys; print(*sys.version_info[:2])"], &install)?;
        let found = version.trim().split_once(' ').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        anyhow::ensure!(found.is_some_and(|found: (u32, u32)| found >= PYTHON), "this Python is too old: {install}");
        let venv = "`python3 -m venv` does not work here: install Python's venv (on Debian and Ubuntu `apt install python3-venv`)";
        run("python3", folder, &["-m", "venv", ".venv"], &install, venv)?;
        let pip = folder.join(".venv/bin/pip");
        let arguments = ["install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"];
        run(&pip, folder, &arguments, venv, "it could not install what requirements.txt names")?;
    }
    let arguments = ["--quiet", "-d", "wit", "-w", "plugin", "componentize", "app", "-o"].map(OsStr::new);
    let arguments = arguments.into_iter().chain([out.as_os_str()]).collect::<Vec<_>>();
    run(
        &tool,
        folder,
        &arguments,
        "remove the folder .venv and build again",
        "what is wrong stands above; if it is the tool itself, remove the folder .venv and build again",
    )
}

/// What a tool says of itself.
fn said(tool: &str, folder: &Path, arguments: &[&str], install: &str) -> anyhow::Result<String> {
    match Command::new(tool).args(arguments).current_dir(folder).output() {
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => anyhow::bail!("`{tool}` is not here: {install}"),
        Err(error) => Err(error).with_context(|| tool.to_owned()),
    }
}

/// Runs a tool that speaks to the person itself; what to do if it is missing, and if it fails. Standard output is for this
/// command's result, so it goes beside it.
fn run<S: AsRef<OsStr>>(
    tool: impl AsRef<OsStr>,
    folder: &Path,
    arguments: &[S],
    missing: &str,
    failed: &str,
) -> anyhow::Result<()> {
    let tool = tool.as_ref();
    let shown = Path::new(tool).file_name().unwrap_or(tool).to_string_lossy();
    let mut command = Command::new(tool);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(std::io::stderr());
    // As `activate` does: componentize-py looks there for what the plugin imports.
    command.env("VIRTUAL_ENV", folder.join(".venv"));
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => anyhow::bail!("{shown} failed ({status}): {failed}"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => anyhow::bail!("`{shown}` is not here: {missing}"),
        Err(error) => Err(error).with_context(|| shown.into_owned()),
    }
}
