//! Loading a plugin as the server does: the same engine, limits and checks.

use std::{
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::Context as _;

use crate::{
    clock::Clock,
    domain::connection::Kind,
    plugins::{self, Artifact},
    sandbox::{
        Sandbox,
        cache::Cache,
        egress::{Client, Policy, SystemResolver},
        limits::Bounds,
    },
};

/// More is no plugin, whatever a server's setting says: one in Python has 18 MB.
const LARGEST: u64 = 1 << 30;

/// Compiled components that are kept: a plugin in JavaScript or Python takes seconds to compile, and is tested often.
const KEPT: usize = 16;

/// A plugin that the sandbox has compiled.
pub struct Loaded {
    /// Where it runs.
    pub sandbox: Sandbox,
    /// Kind, origin and bytes.
    pub artifact: Artifact,
    /// What it imports.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
    /// How long compiling took.
    pub compiled_in: std::time::Duration,
    /// For whatever is written; gone with this.
    pub scratch: tempfile::TempDir,
}

/// The bytes of a component: a file, or a bundled plugin by its name (`webhook`, or `audit_sink/webhook` where several
/// kinds have one).
///
/// # Errors
/// If there is neither.
pub fn bytes(name: &Path) -> anyhow::Result<(String, &'static [u8])> {
    let text = name.display().to_string();
    if !name.exists() {
        let (kind, plain) = match text.split_once('/') {
            Some((kind, plain)) => (Some(kind.replace('-', "_")), plain),
            None => (None, text.as_str()),
        };
        let mut found =
            plugins::bundled().filter(|(k, n, _)| *n == plain && kind.as_deref().is_none_or(|kind| kind == k.as_str()));
        if let Some((kind, name, wasm)) = found.next() {
            if let Some((other, ..)) = found.next() {
                anyhow::bail!("{name} is several plugins: say {}/{name} or {}/{name}", kind.as_str(), other.as_str());
            }
            return Ok((name.to_owned(), wasm));
        }
        let bundled: Vec<String> =
            plugins::bundled().map(|(kind, name, _)| format!("{}/{name}", kind.as_str())).collect();
        anyhow::bail!("{text}: no such file, and no bundled plugin of that name ({})", bundled.join(", "));
    }
    let found = std::fs::metadata(name).with_context(|| text.clone())?;
    anyhow::ensure!(
        !found.is_dir(),
        "{text} is a folder: name the component, which `kaizen plugin build` puts into its folder `dist`"
    );
    let length = found.len();
    anyhow::ensure!(length <= LARGEST, "{text}: larger than {} MB", LARGEST >> 20);
    // For as long as the command runs, which is about this one file.
    Ok((text.clone(), std::fs::read(name).context(text)?.leak()))
}

/// Compiles a component and finds out its kind. What is compiled is kept in the data folder, apart from the server's.
///
/// # Errors
/// What is wrong with it.
pub async fn load(name: &Path, policy: Policy, bounds: Bounds, data: &Path) -> anyhow::Result<Loaded> {
    let (origin, wasm) = bytes(name)?;
    let scratch = tempfile::Builder::new().prefix("kaizen-plugin-").tempdir().context("a temporary folder")?;
    let cache = match cache(&data.join("authoring")) {
        Ok(cache) => cache,
        // It costs time only.
        Err(_) => Cache::new(scratch.path().join("compiled"), &Clock::system().bytes()),
    };
    let egress = Client::new(policy, Arc::new(SystemResolver::default()));
    let sandbox = Sandbox::within(bounds, cache, egress, Clock::system())
        .map_err(|error| anyhow::anyhow!("the sandbox cannot start: {error}"))?;
    let started = Instant::now();
    let compiling = sandbox.clone();
    let component =
        tokio::task::spawn_blocking(move || compiling.compile(wasm)).await?.with_context(|| origin.clone())?;
    let compiled_in = started.elapsed();
    let kind = component.component_type();
    let engine = component.engine();
    let imports = kind.imports(engine).map(|(name, _)| name.to_owned()).collect();
    let exports: Vec<String> = kind.exports(engine).map(|(name, _)| name.to_owned()).collect();
    let kind = kind_of(&exports).with_context(|| {
        format!(
            "{origin}: it exports none of kaizen:identity-provider/provider@0.1.0, kaizen:deployment-target/target@0.1.0 and \
             kaizen:audit-sink/sink@0.1.0, so it is no plugin of this server; it exports: {}",
            exports.join(", ")
        )
    })?;
    let artifact = (kind, &*origin.leak(), wasm);
    Ok(Loaded { sandbox, artifact, imports, exports, compiled_in, scratch })
}

/// The cache in a folder, and its key, which is made at first use.
fn cache(folder: &Path) -> std::io::Result<Cache> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join("key");
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => file.write_all(&Clock::system().bytes::<32>())?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let key = std::fs::read(&path)?;
    let key = <[u8; 32]>::try_from(key).map_err(|_| std::io::Error::other("no key"))?;
    let compiled = folder.join("compiled");
    let mut kept: Vec<(SystemTime, std::path::PathBuf)> = std::fs::read_dir(&compiled)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    kept.sort_unstable_by(|a, b| b.cmp(a));
    for (_, old) in kept.into_iter().skip(KEPT) {
        drop(std::fs::remove_file(old));
    }
    Ok(Cache::new(compiled, &key))
}

/// The kind of a component that exports these.
fn kind_of(exports: &[String]) -> Option<Kind> {
    exports.iter().find_map(|name| Kind::from_wit(name.strip_prefix("kaizen:")?.split('/').next()?))
}
