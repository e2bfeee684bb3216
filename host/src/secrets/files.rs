//! The master key in the data folder, and how it is replaced.
//!
//! | file | holds |
//! |---|---|
//! | `master.key` | the key that seals |
//! | `master.key.previous` | the one before, while values are re-encrypted; it still opens |
//! | `master.key.retired` | the one before, afterwards: a change written at the very moment of the rotation may be sealed with it. The next rotation re-encrypts that too, and replaces it |
//!
//! Each step leaves a state in which servers can open everything and in which the rotation can be taken up again.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::clock::Clock;

pub(super) type Key = Zeroizing<[u8; 32]>;

const CURRENT: &str = "master.key";
const PREVIOUS: &str = "master.key.previous";
const RETIRED: &str = "master.key.retired";
const LOCK: &str = "master.key.lock";

/// A key as people write it.
pub(super) fn parse(text: &str) -> Option<Key> {
    let mut key = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim(), &mut *key).ok()?;
    Some(key)
}

/// The keys of a data folder, the one that seals first; it is made if there is none.
///
/// # Errors
/// If a file cannot be read or made, or others may read it.
pub(super) fn keys(folder: &Path, clock: &Clock) -> anyhow::Result<(Key, Vec<Key>)> {
    let path = folder.join(CURRENT);
    if !path.exists() {
        made(folder, &path, clock, |aside| match std::fs::hard_link(aside, &path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        })?;
    }
    // In this order, so that a rotation that begins or ends meanwhile hides no key: what moves on is met again further on.
    let current = read(&path)?.ok_or_else(|| anyhow::anyhow!("cannot read the master key {}", path.display()))?;
    let mut others = Vec::new();
    for name in [PREVIOUS, RETIRED] {
        others.extend(read(&folder.join(name))?);
    }
    Ok((current, others))
}

fn read(path: &Path) -> anyhow::Result<Option<Key>> {
    let shown = path.display();
    let failed = |error| anyhow::anyhow!("cannot read the master key {shown}: {error}");
    let mode = match std::fs::metadata(path) {
        Ok(metadata) => metadata.permissions().mode(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if mode & 0o077 != 0 {
        anyhow::bail!(
            "the master key {shown} can be read by others (mode {:o}): run `chmod 600 {shown}`",
            mode & 0o777
        );
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
    let key = parse(&text).ok_or_else(|| {
        anyhow::anyhow!("{shown} is no master key (64 hexadecimal digits): restore it from a backup; without it stored secrets are lost")
    })?;
    Ok(Some(key))
}

/// Makes a key aside, for `place` to bring to where it belongs: so that two servers starting at once agree on one key, and
/// no reader sees half of it.
fn made(
    folder: &Path,
    path: &Path,
    clock: &Clock,
    place: impl FnOnce(&Path) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let aside = folder.join(format!("{CURRENT}.{}", hex::encode(clock.bytes::<8>())));
    let key = Zeroizing::new(hex::encode(Zeroizing::new(clock.bytes::<32>())));
    let made = (|| {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(key.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        place(&aside)?;
        File::open(folder)?.sync_all()
    })();
    drop(std::fs::remove_file(&aside));
    made.map_err(|error| anyhow::anyhow!("cannot make the master key {}: {error}", path.display()))
}

/// A rotation under way; no other runs beside it in this folder.
pub struct Rotation {
    folder: PathBuf,
    _lock: File,
}

impl Rotation {
    /// Puts a new key in the current one's place, which stays as the previous; or takes up a rotation that was cut short.
    ///
    /// # Errors
    /// If another one runs, or a file cannot be written.
    pub fn begin(folder: &Path, clock: &Clock) -> anyhow::Result<Self> {
        keys(folder, clock)?;
        let lock_path = folder.join(LOCK);
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = open.map_err(|error| anyhow::anyhow!("{}: {error}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => anyhow::bail!("another rotation of the master key is under way here"),
            Err(TryLockError::Error(error)) => anyhow::bail!("{}: {error}", lock_path.display()),
        }
        let (current, previous) = (folder.join(CURRENT), folder.join(PREVIOUS));
        if !previous.exists() {
            std::fs::hard_link(&current, &previous)
                .and_then(|()| File::open(folder)?.sync_all())
                .map_err(|error| anyhow::anyhow!("cannot keep the master key as {}: {error}", previous.display()))?;
        }
        if read(&current)? == read(&previous)? {
            made(folder, &current, clock, |aside| std::fs::rename(aside, &current))?;
        }
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    /// Everything is sealed with the new key.
    ///
    /// # Errors
    /// If the file of the previous key cannot be renamed.
    pub fn finish(self) -> anyhow::Result<()> {
        let previous = self.folder.join(PREVIOUS);
        std::fs::rename(&previous, self.folder.join(RETIRED))
            .and_then(|()| File::open(&self.folder)?.sync_all())
            .map_err(|error| anyhow::anyhow!("cannot retire the master key {}: {error}", previous.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current(folder: &Path, clock: &Clock) -> Key {
        keys(folder, clock).unwrap().0
    }

    #[test]
    fn the_file_is_made_once_and_only_for_us() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let clock = Clock::system();
        let first = current(&data, &clock);
        assert_eq!(first, current(&data, &clock), "the second start finds the first's");
        let path = data.join(CURRENT);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1, "nothing is left over");

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = keys(&data, &clock).unwrap_err().to_string();
        assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "nonsense").unwrap();
        assert!(keys(&data, &clock).is_err());
    }

    #[test]
    fn a_rotation_is_taken_up_wherever_it_was_cut_short() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let data = folder.path();
        let first = current(data, &clock);

        // Killed after the current key was kept, before there was a new one.
        std::fs::hard_link(data.join(CURRENT), data.join(PREVIOUS)).unwrap();
        let rotation = Rotation::begin(data, &clock).unwrap();
        let (second, others) = keys(data, &clock).unwrap();
        assert_ne!(second, first);
        assert_eq!(others, std::slice::from_ref(&first));
        assert!(Rotation::begin(data, &clock).is_err_and(|error| error.to_string().contains("under way")));

        // Killed while values were re-encrypted: no third key.
        drop(rotation);
        let rotation = Rotation::begin(data, &clock).unwrap();
        assert_eq!(keys(data, &clock).unwrap(), (second.clone(), vec![first.clone()]));
        rotation.finish().unwrap();
        assert_eq!(keys(data, &clock).unwrap(), (second.clone(), vec![first]), "retired, and still opens");

        // The next one begins afresh.
        Rotation::begin(data, &clock).unwrap().finish().unwrap();
        let (third, others) = keys(data, &clock).unwrap();
        assert!(third != second && others == [second]);
        assert_eq!(std::fs::metadata(data.join(RETIRED)).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
