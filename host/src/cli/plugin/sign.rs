//! `kaizen plugin keygen` and `kaizen plugin sign`: Ed25519 signatures, as `plugins_trusted_keys` asks for them.

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use zeroize::Zeroizing;

use crate::{cli::print, clock::Clock, plugins::signature::SecretKey};

/// Make a key to sign plugins with: the secret one goes into a file, the public one is printed, for `plugins_trusted_keys`
#[derive(Debug, Args)]
pub struct Keygen {
    /// Where to write the secret key; must not be there yet
    #[arg(long, value_name = "FILE", default_value = "plugin-signing.key")]
    out: PathBuf,
}

/// Sign a plugin: writes FILE.wasm.sig beside it, which is uploaded with it
#[derive(Debug, Args)]
pub struct Sign {
    /// The secret key, as `kaizen plugin keygen` wrote it
    #[arg(long, value_name = "FILE", default_value = "plugin-signing.key")]
    key: PathBuf,
    /// The plugin
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
}

impl Keygen {
    /// Writes the secret key, readable by its owner alone, and prints the public one.
    ///
    /// # Errors
    /// If the file is there already or cannot be written.
    pub fn run(&self) -> anyhow::Result<()> {
        let key = SecretKey::generate(&Clock::system());
        let mut options = std::fs::OpenOptions::new();
        let opened = options.write(true).create_new(true).mode(0o600).open(&self.out);
        let mut file = opened.with_context(|| format!("--out: cannot write a new file {}", self.out.display()))?;
        file.write_all(key.text().as_bytes()).and_then(|()| file.sync_all()).context(shown(&self.out))?;
        print(&key.public()?.to_string())
    }
}

impl Sign {
    /// Writes the signature beside the plugin and prints where.
    ///
    /// # Errors
    /// If the key or the plugin cannot be read, or the signature cannot be written.
    pub fn run(&self) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(&self.key)
            .with_context(|| format!("--key: cannot read {}: `kaizen plugin keygen` makes one", self.key.display()))?;
        let key = SecretKey::parse(&Zeroizing::new(text)).with_context(|| format!("--key {}", self.key.display()))?;
        let wasm = std::fs::read(&self.file).with_context(|| shown(&self.file))?;
        let signature = key.sign(&wasm)?;
        let mut beside = self.file.as_os_str().to_owned();
        beside.push(".sig");
        let beside = PathBuf::from(beside);
        std::fs::write(&beside, format!("{signature}\n")).with_context(|| shown(&beside))?;
        print(&format!("{}: signed with {}", beside.display(), signature.key))
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::plugins::signature::Signature;

    #[test]
    fn a_key_signs_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let (key, file) = (folder.path().join("k"), folder.path().join("p.wasm"));
        std::fs::write(&file, b"component").unwrap();
        Keygen { out: key.clone() }.run().unwrap();
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let before = std::fs::read(&key).unwrap();
        assert!(format!("{:#}", Keygen { out: key.clone() }.run().unwrap_err()).contains("--out"));
        assert_eq!(std::fs::read(&key).unwrap(), before);
        Sign { key, file }.run().unwrap();
        let signature: Signature = std::fs::read_to_string(folder.path().join("p.wasm.sig")).unwrap().parse().unwrap();
        signature.verify(b"component").unwrap();
    }

    #[test]
    fn what_is_missing_or_no_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (key, file) = (folder.path().join("k"), folder.path().join("p.wasm"));
        let sign = Sign { key: key.clone(), file };
        assert!(format!("{:#}", sign.run().unwrap_err()).contains("kaizen plugin keygen"));
        std::fs::write(&key, "hunter2").unwrap();
        let error = format!("{:#}", sign.run().unwrap_err());
        assert!(error.contains("not a secret key") && !error.contains("hunter2"), "{error}");
    }
}
