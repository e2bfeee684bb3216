//! The folders that guests are given: each belongs to one connection, holds so many bytes and files, and has no links.
//!
//! What lies in a folder is counted when a call begins, and again after [`FRESH`] or where little is left; in between all calls of
//! the connection share what was left. Bytes count as they are written, also where they replace others, so a call may end before
//! the folder is full but not after. Beside it there are so many of the same organization, whoever uses them or did: what was
//! written stays when a connection is deleted, so that would not bound the disk otherwise. A link could lead whoever reads the folder from outside, e.g. a log shipper, to any other file
//! of the server, so none can be made.

mod filesystem;

use std::{
    collections::HashMap,
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

pub(super) use self::filesystem::add_to_linker;
use super::{Fault, body::Budget, limits::Bounds};

/// How long what was counted is good for.
const FRESH: Duration = Duration::from_secs(60);
/// Where less than this part of what a folder may hold is left, it is counted for each call.
const LITTLE: u64 = 8;

/// What may still be put into the folders of one connection.
#[derive(Clone)]
pub(super) struct Room {
    bytes: Arc<Budget>,
    files: Arc<Budget>,
}

impl Room {
    /// No folder, no room.
    pub(super) fn none() -> Self {
        Self::of(0, 0)
    }

    fn of(bytes: u64, files: u64) -> Self {
        Self { bytes: Arc::new(Budget::new(bytes)), files: Arc::new(Budget::new(files)) }
    }
}

type Offered = Vec<(String, PathBuf)>;

/// The folders of all calls.
pub(super) struct Folders {
    /// Bytes and files that each may hold.
    most: (u64, u64),
    /// Folders that one organization may have; they lie beside each other.
    most_of_organization: u64,
    /// Held while one is made.
    making: Mutex<()>,
    /// Held by the thread that looks for room without making one.
    looking: Arc<Semaphore>,
    /// What was left in the folders of a connection, and when that was counted.
    counted: Mutex<HashMap<Offered, (Instant, Room)>>,
}

impl Folders {
    pub(super) fn new(bounds: &Bounds) -> Self {
        Self {
            most: (bounds.folder_bytes, bounds.folder_files),
            most_of_organization: bounds.folders_per_organization,
            making: Mutex::default(),
            looking: Arc::new(Semaphore::new(1)),
            counted: Mutex::default(),
        }
    }

    /// Whether these folders are there, or can be made. Makes none.
    ///
    /// # Errors
    /// Where there are too many beside them already.
    pub(super) async fn permit(self: &Arc<Self>, folders: Vec<(String, PathBuf)>) -> Result<(), Fault> {
        let setup = |error: &dyn Display| Fault::Setup(error.to_string());
        // The file system may be another machine's and silent: no more than one thread waits for it here.
        let turn = self.looking.clone().acquire_owned().await.map_err(|error| setup(&error))?;
        let this = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            folders.iter().try_for_each(|(name, path)| this.beside(name, path))
        });
        looked.await.map_err(|error| setup(&error))?
    }

    /// Refuses a folder that is not there where there are as many beside it as one organization may have.
    fn beside(&self, name: &str, path: &Path) -> Result<(), Fault> {
        let Some(parent) = path.parent().filter(|_| !path.is_dir()) else { return Ok(()) };
        let most = self.most_of_organization;
        let found = folders_in(parent, most).map_err(|error| refused(name, path, &error))?;
        if found < most {
            return Ok(());
        }
        Err(Fault::Setup(format!(
            "the folder `{name}`: this organization has {most} of them already, as many as it may \
             (`plugin_folders_per_organization`), and those of deleted connections count: the operator can remove what is not \
             wanted any more, or raise the setting"
        )))
    }

    fn make(&self, name: &str, path: &Path) -> Result<(), Fault> {
        // Two that found the same room would go beyond.
        let _turn = self.making.lock();
        self.beside(name, path)?;
        make_private(path).map_err(|error| refused(name, path, &error))
    }

    /// Makes the folders, if missing, for this server's user only, and offers them to the guest.
    ///
    /// # Errors
    /// Where a folder cannot be made or read, or holds more than it may, or there are too many.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        mut wasi: WasiCtxBuilder,
        folders: &[(String, PathBuf)],
    ) -> Result<(WasiCtxBuilder, Room), Fault> {
        let (this, folders) = (self.clone(), folders.to_vec());
        // The file system may be another machine's, and slow.
        let prepared = tokio::task::spawn_blocking(move || {
            for (name, path) in &folders {
                if !path.is_dir() {
                    this.make(name, path)?;
                }
                let offered = wasi.preopened_dir(path, format!("/{name}"), FsPerms::ReadWrite);
                offered.map_err(|error| refused(name, path, &error))?;
            }
            let room = this.room(folders)?;
            Ok((wasi, room))
        });
        prepared.await.map_err(|error| Fault::Setup(error.to_string()))?
    }

    /// What is left, counted anew where that is due.
    fn room(&self, folders: Offered) -> Result<Room, Fault> {
        let (most_bytes, most_files) = self.most;
        let known = self.counted.lock().get(&folders).cloned();
        if let Some((at, room)) = known
            && at.elapsed() < FRESH
            && room.bytes.left() >= most_bytes / LITTLE
            && room.files.left() >= most_files / LITTLE
        {
            return Ok(room);
        }
        let (bytes, files) = left(&folders, self.most)?;
        let room = Room::of(bytes, files);
        let mut counted = self.counted.lock();
        counted.retain(|_, (at, _)| at.elapsed() < FRESH);
        counted.insert(folders, (Instant::now(), room.clone()));
        Ok(room)
    }
}

fn refused(name: &str, path: &Path, error: &dyn Display) -> Fault {
    Fault::Setup(format!("the folder `{name}` ({}): {error}", path.display()))
}

/// What is left in the fullest of these folders.
fn left(folders: &[(String, PathBuf)], most: (u64, u64)) -> Result<(u64, u64), Fault> {
    let mut left = most;
    for (name, path) in folders {
        let (bytes, files) = holds(path, most.1).map_err(|error| refused(name, path, &error))?;
        let rest = most.0.checked_sub(bytes).zip(most.1.checked_sub(files));
        let Some((bytes, files)) = rest else {
            let why = format!(
                "it holds more than {} MiB or {} files (`plugin_folder_mib`, `plugin_folder_files`): move some away",
                most.0 >> 20,
                most.1
            );
            return Err(Fault::Setup(format!("the folder `{name}`: {why}")));
        };
        left = (left.0.min(bytes), left.1.min(files));
    }
    Ok(left)
}

fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Folders in a folder; stops counting at `most`. None where it is not there.
fn folders_in(folder: &Path, most: u64) -> std::io::Result<u64> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut count = 0;
    for entry in entries {
        if entry?.file_type()?.is_dir() {
            count += 1;
        }
        if count >= most {
            break;
        }
    }
    Ok(count)
}

/// Bytes and entries in a folder and those below it; stops counting after `most` entries.
fn holds(folder: &Path, most: u64) -> std::io::Result<(u64, u64)> {
    let (mut bytes, mut entries) = (0_u64, 0_u64);
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            // Not of what a link leads to.
            let found = entry.metadata()?;
            if found.is_dir() {
                open.push(entry.path());
            } else {
                bytes = bytes.saturating_add(found.len());
            }
            entries = entries.saturating_add(1);
            if entries > most {
                return Ok((bytes, entries));
            }
        }
    }
    Ok((bytes, entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_counted_once_in_a_while_and_for_each_call_where_little_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let folders = || vec![("audit".to_owned(), folder.path().to_owned())];
        let all = Folders::new(&Bounds { folder_bytes: 8000, folder_files: 100, ..Bounds::default() });
        let of = |left: u64| all.room(folders()).unwrap().bytes.left() == left;
        std::fs::write(folder.path().join("a"), [0; 1000]).unwrap();
        assert!(of(7000));
        // All calls share what is left: what one writes, the next has not.
        assert!(all.room(folders()).unwrap().bytes.take(500) && of(6500));
        std::fs::write(folder.path().join("a"), [0; 3000]).unwrap();
        assert!(of(6500), "it was counted just now");
        assert!(all.room(folders()).unwrap().bytes.take(6000) && of(5000), "little was left: it is counted");
        std::fs::write(folder.path().join("a"), [0; 7500]).unwrap();
        assert!(all.room(folders()).unwrap().bytes.take(4500) && of(500));
        std::fs::write(folder.path().join("a"), [0; 9000]).unwrap();
        assert!(all.room(folders()).is_err(), "and it is full at once");
    }

    #[tokio::test]
    async fn folders_of_one_organization_are_few_and_those_that_are_there_stay_usable() {
        let disk = tempfile::tempdir().unwrap();
        let all = Arc::new(Folders::new(&Bounds { folders_per_organization: 2, ..Bounds::default() }));
        let own = |organization: &str, connection: &str| {
            vec![("audit".to_owned(), disk.path().join(organization).join(connection))]
        };
        let made = async |folders: &Offered| {
            let prepared = all.prepare(wasmtime_wasi::WasiCtx::builder(), folders).await;
            prepared.map(drop).map_err(|fault| fault.to_string())
        };
        assert_eq!(all.permit(own("a", "1")).await, Ok(()), "there is nothing");
        assert!(!disk.path().join("a").exists(), "and nothing is made");
        for connection in ["1", "2"] {
            assert_eq!(made(&own("a", connection)).await, Ok(()));
        }
        // A file beside them is none.
        std::fs::write(disk.path().join("a/notes"), "").unwrap();
        let why = made(&own("a", "3")).await.unwrap_err();
        assert!(why.contains("plugin_folders_per_organization") && why.contains("the operator"), "{why}");
        assert!(matches!(all.permit(own("a", "3")).await, Err(Fault::Setup(told)) if why.contains(&told)));
        assert!(!disk.path().join("a/3").exists());
        assert_eq!((made(&own("a", "2")).await, all.permit(own("a", "1")).await), (Ok(()), Ok(())));
        assert_eq!(made(&own("b", "3")).await, Ok(()), "another organization has its own");
        std::fs::remove_dir_all(disk.path().join("a/1")).unwrap();
        assert_eq!((all.permit(own("a", "3")).await, made(&own("a", "3")).await), (Ok(()), Ok(())));
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_holds_no_thread_of_the_runtime() {
        let disk = tempfile::tempdir().unwrap();
        let all = Arc::new(Folders::new(&Bounds::default()));
        let folders = vec![("audit".to_owned(), disk.path().join("own"))];
        // Whoever makes a folder waits for this, as for a disk; in the end it gives way by itself.
        let (holds, held) = std::sync::mpsc::channel::<()>();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let disk = all.clone();
        let slow = std::thread::spawn(move || {
            let _turn = disk.making.lock();
            holds.send(()).unwrap();
            released.recv_timeout(Duration::from_secs(20)).ok();
        });
        held.recv().unwrap();
        // This test has one thread: had it waited here, the folder would be made by now.
        let mut preparing = Box::pin(all.prepare(wasmtime_wasi::WasiCtx::builder(), &folders));
        assert!(futures::poll!(&mut preparing).is_pending());
        tokio::task::yield_now().await;
        assert!(futures::poll!(&mut preparing).is_pending());
        release.send(()).unwrap();
        assert!(preparing.await.is_ok());
        slow.join().unwrap();
    }

    #[test]
    fn what_a_folder_holds_is_counted_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own");
        make_private(&path).unwrap();
        std::fs::create_dir(path.join("deep")).unwrap();
        std::fs::write(path.join("deep/a"), [0; 1000]).unwrap();
        std::fs::write(folder.path().join("outside"), [0; 5000]).unwrap();
        std::os::unix::fs::symlink("../outside", path.join("link")).unwrap();
        let (bytes, entries) = holds(&path, 10).unwrap();
        assert!((1000..1100).contains(&bytes) && entries == 3, "{bytes} {entries}");
        assert_eq!(holds(&path, 1).unwrap().1, 2, "it does not count on");
    }
}
