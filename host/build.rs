//! Builds the bundled plugins for wasm32-wasip2 and embeds them, so that the server is one file.
//!
//! Every folder `plugins/{identity,deploy,audit}/NAME` with a `Cargo.toml` is one plugin. They are a workspace of their
//! own, built by a cargo of its own, in release, in `<target>/plugins`. The result is `$OUT_DIR/bundled.rs` with
//! `pub static BUNDLED: &[(&str /* kind */, &str /* name */, &[u8])]`.

use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

const TARGET: &str = "wasm32-wasip2";

/// The folders of `plugins/` and the kind of what is in them, as its WIT package is called.
const KINDS: [(&str, &str); 3] =
    [("identity", "identity-provider"), ("deploy", "deployment-target"), ("audit", "audit-sink")];

/// What the plugins are made of. Whole folders, but for the workspace's own, which may have a `target` in it.
const SOURCES: [&str; 8] = [
    "plugins/Cargo.toml",
    "plugins/Cargo.lock",
    "plugins/sdk",
    "plugins/identity",
    "plugins/deploy",
    "plugins/audit",
    "wit",
    "rust-toolchain.toml",
];

/// Environment that reaches the inner cargo although its name starts with `CARGO_`: where things are, and how to fetch.
const KEPT: [&str; 6] =
    ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"];

/// Environment that tells a cargo or rustc about another build than the one to come.
const DROPPED: [&str; 10] =
    ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTDOCFLAGS", "MAKEFLAGS", "MFLAGS", "TARGET", "HOST", "__CARGO"];

struct Plugin {
    kind: &'static str,
    name: String,
    package: String,
}

fn main() -> ExitCode {
    let Err(error) = embed() else { return ExitCode::SUCCESS };
    for line in error.to_string().lines() {
        println!("cargo::error={line}");
    }
    ExitCode::FAILURE
}

fn embed() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).parent().ok_or("host/ has no parent folder")?.to_owned();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rerun-if-changed=build.rs");
    for source in SOURCES {
        // Relative, as to the package: a target folder that another checkout filled looks at this one's files.
        println!("cargo::rerun-if-changed=../{source}");
    }

    let plugins = bundled(&root)?;
    ensure_target(&root)?;
    let built = build(&root, &target_folder(&out)?, &plugins)?;

    let mut generated = String::from("pub static BUNDLED: &[(&str, &str, &[u8])] = &[\n");
    for plugin in &plugins {
        let file = format!("{}.wasm", plugin.package);
        // A copy: another profile's build may replace the original while this one compiles.
        let wasm = built.join(format!("{}.wasm", plugin.package.replace('-', "_")));
        replace(&out.join(&file), &fs::read(&wasm).map_err(|error| format!("{}: {error}", wasm.display()))?)?;
        generated += &format!(
            "    ({:?}, {:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{file}\"))),\n",
            plugin.kind, plugin.name
        );
    }
    generated += "];\n";
    replace(&out.join("bundled.rs"), generated.as_bytes())
}

/// The plugins found, in the order of their kinds and names.
fn bundled(root: &Path) -> Result<Vec<Plugin>, Box<dyn Error>> {
    let mut plugins = Vec::new();
    for (folder, kind) in KINDS {
        let path = root.join("plugins").join(folder);
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(|error| format!("{}: {error}", path.display()))? {
            let entry = entry?;
            if entry.path().join("Cargo.toml").is_file() {
                names.push(entry.file_name().into_string().map_err(|name| format!("{}: not UTF-8", name.display()))?);
            }
        }
        names.sort();
        plugins.extend(names.into_iter().map(|name| Plugin { kind, package: format!("{folder}-{name}"), name }));
    }
    Ok(plugins)
}

/// `<target>/plugins`, from `<target>/[triple/]<profile>/build/<package>/out`: never the folder that the outer cargo
/// has locked.
fn target_folder(out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    Ok(out.ancestors().nth(4).ok_or_else(|| format!("no target folder above {}", out.display()))?.join("plugins"))
}

/// A command in the plugins' folder (so that rustup picks the same toolchain for all of them) without this build's
/// environment.
fn command(root: &Path, program: &OsStr) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root.join("plugins"));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let kept = KEPT.iter().any(|kept| text.starts_with(kept));
        let dropped = text.starts_with("CARGO_") || text.starts_with("RUSTC_") || DROPPED.contains(&text.as_ref());
        if dropped && !kept {
            command.env_remove(&name);
        }
    }
    command
}

/// Adds the target where it is missing. A rustup that may not install by itself needs to be told.
fn ensure_target(root: &Path) -> Result<(), Box<dyn Error>> {
    let probe = command(root, OsStr::new("rustc")).args(["--print", "target-libdir", "--target", TARGET]).output();
    let libdir = probe.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if !libdir.is_empty() && Path::new(&libdir).is_dir() {
        return Ok(());
    }
    println!("cargo::warning=adding the target {TARGET}, which the bundled plugins need");
    let added = command(root, OsStr::new("rustup")).args(["target", "add", TARGET]).output();
    let why = match added {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("rustup can't be run: {error}"),
    };
    Err(format!(
        "the bundled plugins need Rust's target {TARGET}, and it could not be added.\n\
         Run `rustup target add {TARGET}` in {}, or install that target the way your Rust was installed.\n{why}",
        root.display()
    )
    .into())
}

/// Builds them; where nothing changed, cargo says so in a fraction of a second. Returns the folder with the components.
fn build(root: &Path, target: &Path, plugins: &[Plugin]) -> Result<PathBuf, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = command(root, &cargo);
    build.args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"]).arg(target);
    for plugin in plugins {
        build.args(["--package", &plugin.package]);
    }
    let output = build.output().map_err(|error| format!("{}: {error}", cargo.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the bundled plugins don't build ({}):\n{said}", output.status).into());
    }
    Ok(target.join(TARGET).join("release"))
}

/// Writes a file only where it differs, so that what was made from it stays fresh.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()).into())
}
