//! Compiled components on disk, so that each is compiled once.
//!
//! A file is machine code that runs as it is, so it is loaded only if its HMAC-SHA-256, under a key derived from the
//! server's master key, holds over the component's digest, the engine's compatibility hash and the code. Anything else
//! (edited, cut short, of another component, of another version) is compiled again and replaced.

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use aws_lc_rs::{digest, hmac};
use wasmtime::{Engine, component::Component};

use super::{
    compiler::Compiler,
    native::{self, Trusted},
};

const MAGIC: &[u8] = b"kaizen-compiled-1\n";
const TAG: usize = 32;

/// A folder of compiled components.
pub struct Cache {
    folder: PathBuf,
    key: hmac::Key,
    compiler: Compiler,
}

/// Feeds what wasmtime hashes into SHA-256, in place of a 64-bit hash that says less.
struct Sha(digest::Context);

impl Hasher for Sha {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

/// What a file is for: the component's digest and the engine's.
struct Identity {
    component: [u8; 32],
    engine: [u8; 32],
}

fn sha(context: digest::Context) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    out
}

impl Identity {
    fn of(engine: &Engine, wasm: &[u8]) -> Self {
        let mut component = digest::Context::new(&digest::SHA256);
        component.update(wasm);
        let mut hasher = Sha(digest::Context::new(&digest::SHA256));
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Self { component: sha(component), engine: sha(hasher.0) }
    }

    /// What the files of an engine end with.
    fn suffix(&self) -> String {
        let engine = self.engine.first_chunk::<8>().map(hex::encode).unwrap_or_default();
        format!("-{engine}.compiled")
    }

    fn file_name(&self) -> String {
        format!("{}{}", hex::encode(self.component), self.suffix())
    }
}

impl Cache {
    /// A cache in `folder`, authenticated with `key`.
    pub fn new(folder: PathBuf, key: &[u8; 32]) -> Self {
        Self { folder, key: hmac::Key::new(hmac::HMAC_SHA256, key), compiler: Compiler::Here }
    }

    /// The same, where what is not there is compiled so.
    #[must_use]
    pub fn compiled_by(self, compiler: Compiler) -> Self {
        Self { compiler, ..self }
    }

    /// The component, compiled before or now. Trouble with the cache itself is logged and costs only time.
    ///
    /// # Errors
    /// If the bytes are no component, or none that this engine can run.
    pub fn component(&self, engine: &Engine, wasm: &[u8]) -> wasmtime::Result<Component> {
        let identity = Identity::of(engine, wasm);
        let path = self.folder.join(identity.file_name());
        match self.read(&path, &identity) {
            Ok(Some(compiled)) => match native::load(engine, &Trusted(&compiled)) {
                Ok(component) => return Ok(component),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "compiled plugin does not load: compiling again")
                }
            },
            Ok(None) => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "compiled plugin not used: compiling again"),
        }
        let compiled = self.compiler.compile(engine, wasm)?;
        if let Err(error) = self.write(&path, &identity, &compiled) {
            tracing::warn!(path = %path.display(), %error, "compiled plugin not kept: the next start compiles again");
        }
        native::load(engine, &Trusted(&compiled))
    }

    /// Removes every file but those of this engine and of the components of these digests (SHA-256, hexadecimal).
    ///
    /// # Errors
    /// As the file system says.
    pub fn keep(&self, engine: &Engine, digests: &BTreeSet<String>) -> std::io::Result<()> {
        let suffix = Identity::of(engine, &[]).suffix();
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        // What was written aside by a server that was killed; this one may be at it just now.
        let ours = format!(".{}-", std::process::id());
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kept = name.strip_suffix(&suffix).is_some_and(|digest| digests.contains(digest));
            let left = name.ends_with(".tmp") && !name.contains(&ours);
            if left || (name.ends_with(".compiled") && !kept) {
                match std::fs::remove_file(entry.path()) {
                    // Another server of this folder was quicker.
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn tag(&self, identity: &Identity, compiled: &[u8]) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [MAGIC, &identity.component, &identity.engine, compiled] {
            context.update(part);
        }
        context
    }

    /// The code in the file, if it is there and authentic.
    fn read(&self, path: &Path, identity: &Identity) -> std::io::Result<Option<Vec<u8>>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let refused =
            || std::io::Error::other("it is not what this server wrote (its authentication code does not hold)");
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(refused)?;
        let (tag, compiled) = rest.split_at_checked(TAG).ok_or_else(refused)?;
        let expected = self.tag(identity, compiled).sign();
        if !bool::from(subtle::ConstantTimeEq::ct_eq(expected.as_ref(), tag)) {
            return Err(refused());
        }
        Ok(Some(compiled.to_vec()))
    }

    fn write(&self, path: &Path, identity: &Identity, compiled: &[u8]) -> std::io::Result<()> {
        static UNIQUE: AtomicU64 = AtomicU64::new(0);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        // Written aside and renamed, so that no other server reads half of it.
        let aside =
            path.with_extension(format!("{}-{}.tmp", std::process::id(), UNIQUE.fetch_add(1, Ordering::Relaxed)));
        let result = (|| {
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
            file.write_all(MAGIC)?;
            file.write_all(self.tag(identity, compiled).sign().as_ref())?;
            file.write_all(compiled)?;
            std::fs::rename(&aside, path)
        })();
        if result.is_err() {
            drop(std::fs::remove_file(&aside));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::engine;

    /// The smallest component: `(component)`.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    fn file(folder: &Path) -> PathBuf {
        let mut entries = std::fs::read_dir(folder).unwrap();
        let path = entries.next().unwrap().unwrap().path();
        assert!(entries.next().is_none(), "one file and no leftovers");
        path
    }

    #[test]
    fn what_was_compiled_is_loaded_and_what_was_tampered_with_is_not() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("compiled");
        let engine = engine::build(&Default::default()).unwrap();
        let cache = Cache::new(folder.clone(), &[7; 32]);
        cache.component(&engine, EMPTY).unwrap();
        let path = file(&folder);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let identity = Identity::of(&engine, EMPTY);
        let good = std::fs::read(&path).unwrap();
        assert!(cache.read(&path, &identity).unwrap().is_some());

        for at in [0, MAGIC.len(), MAGIC.len() + TAG, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(cache.read(&path, &identity).is_err(), "a bit flipped at {at} is noticed");
            cache.component(&engine, EMPTY).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), good, "and the file is made anew");
        }
        for length in [0, 5, MAGIC.len() + 3, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            assert!(cache.read(&path, &identity).is_err(), "cut to {length}");
        }
        std::fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        assert!(cache.read(&path, &identity).is_err(), "grown");
        // Another server's key, and another component's file under this one's name.
        std::fs::write(&path, &good).unwrap();
        assert!(Cache::new(folder, &[8; 32]).read(&path, &identity).is_err());
        let other = Identity { component: [1; 32], ..identity };
        assert!(cache.read(&path, &other).is_err());
    }

    #[test]
    fn what_is_not_installed_is_not_kept_and_foreign_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine::build(&Default::default()).unwrap();
        let cache = Cache::new(folder.path().to_owned(), &[7; 32]);
        cache.component(&engine, EMPTY).unwrap();
        let own = file(folder.path()).file_name().unwrap().to_string_lossy().into_owned();
        let digest = own.split_once('-').unwrap().0.to_owned();
        let half = format!("{digest}-0123456789abcdef.0-1.tmp");
        for name in [&format!("{digest}-0123456789abcdef.compiled"), &half, "notes.txt"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        let names = || {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect::<BTreeSet<_>>()
        };
        cache.keep(&engine, &BTreeSet::from([digest])).unwrap();
        assert_eq!(names(), BTreeSet::from([own, "notes.txt".to_owned()]));
        cache.keep(&engine, &BTreeSet::new()).unwrap();
        assert_eq!(names(), BTreeSet::from(["notes.txt".to_owned()]));
        Cache::new(folder.path().join("none"), &[7; 32]).keep(&engine, &BTreeSet::new()).unwrap();
    }

    #[test]
    fn what_another_build_compiled_is_never_loaded() {
        use wasmtime::{Config, ModuleVersionStrategy};
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let cache = Cache::new(folder.to_owned(), &[7; 32]);
        let ours = engine::build(&Default::default()).unwrap();
        let own = Identity::of(&ours, EMPTY);
        cache.component(&ours, EMPTY).unwrap();
        let path = folder.join(own.file_name());
        let good = std::fs::read(&path).unwrap();
        let (mut version, mut settings) = (Config::new(), Config::new());
        version.module_version(ModuleVersionStrategy::Custom("another".into())).unwrap();
        version.epoch_interruption(true);
        settings.epoch_interruption(false);
        for other in [version, settings] {
            let other = Engine::new(&other).unwrap();
            let theirs = Identity::of(&other, EMPTY);
            assert_ne!(own.file_name(), theirs.file_name());
            cache.component(&other, EMPTY).unwrap();
            // Under our name: authentic, and not for this engine.
            std::fs::copy(folder.join(theirs.file_name()), &path).unwrap();
            assert!(cache.read(&path, &own).is_err());
            cache.component(&ours, EMPTY).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), good, "and the file is made anew");
            // Even authenticated as ours it is not run: wasmtime itself does not know it as its own.
            let compiled = other.precompile_component(EMPTY).unwrap();
            cache.write(&path, &own, &compiled).unwrap();
            assert!(cache.read(&path, &own).unwrap().is_some() && native::load(&ours, &Trusted(&compiled)).is_err());
            cache.component(&ours, EMPTY).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), good, "and the file is made anew");
        }
    }

    #[test]
    fn a_cache_that_cannot_be_written_costs_only_time() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let cache = Cache::new(blocked, &[7; 32]);
        assert!(cache.component(&engine::build(&Default::default()).unwrap(), EMPTY).is_ok());
        assert!(cache.component(&engine::build(&Default::default()).unwrap(), b"not wasm").is_err());
    }
}
