//! The folders that guests are given: each belongs to one connection, holds so many bytes and files, and has no links.
//!
//! What lies in a folder is counted when a call begins, and again after [`FRESH`] or where little is left; in between all calls of
//! the connection share what was left. Bytes count as they are written, also where they replace others, so a call may end before
//! the folder is full but not after. Beside it there are so many of the same organization, whoever uses them or did: what was
//! written stays when a connection is deleted, so that would not bound the disk otherwise. A link could lead whoever reads the folder from outside, e.g. a log shipper, to any other file
//! of the server, so none can be made.
//!
//! What waits for the disk, the files of a call that runs included, waits on threads of its own ([`disk`]): a disk that falls silent
//! holds as many as there are, and nothing else of the server.

mod disk;
mod filesystem;

use std::{
    collections::HashMap,
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::timeout};
use uuid::Uuid;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use self::disk::Disk;
pub(super) use self::filesystem::add_to_linker;
use super::{Fault, body::Budget, limits::Bounds, places::Places};

/// How long what was counted is good for.
const FRESH: Duration = Duration::from_secs(60);
/// How long the disk may take to make ready the folders of a call, which has more time. What it counts later is good for the next one.
const DISK_ANSWERS: Duration = Duration::from_secs(5);
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
    /// Threads that wait for the disk.
    pub(super) disk: Disk,
    /// Held by what waits for the disk before a call: of all, and of one organization.
    turns: (Arc<Semaphore>, Places<Option<Uuid>>),
    /// What was left in the folders of a connection, and when that was counted.
    counted: Mutex<HashMap<Offered, (Instant, Room)>>,
}

impl Folders {
    /// Within these bounds.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub(super) fn new(bounds: &Bounds) -> std::io::Result<Self> {
        Ok(Self {
            most: (bounds.folder_bytes, bounds.folder_files),
            most_of_organization: bounds.folders_per_organization,
            making: Mutex::default(),
            disk: Disk::new(bounds.folder_threads)?,
            turns: (
                Arc::new(Semaphore::new(bounds.folder_threads)),
                Places::new(bounds.folder_threads_per_organization),
            ),
            counted: Mutex::default(),
        })
    }

    /// Does what waits for the disk, in turn.
    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        organization: Option<Uuid>,
        work: impl FnOnce(&Self) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let away = |error: &dyn Display| Fault::Unreachable(error.to_string());
        let done = async {
            // Its own first: what waits there holds nothing that others could use.
            let of_organization = self.turns.1.take(organization).await.map_err(|error| away(&error))?;
            let of_all = self.turns.0.clone().acquire_owned().await.map_err(|error| away(&error))?;
            let this = self.clone();
            let working = self.disk.run(move || {
                // Held until it ends, also where nobody waits for it any more.
                let _turns = (of_organization, of_all);
                work(&this)
            });
            working.await.map_err(|error| away(&error))?
        };
        let silent = |_| {
            let why = "the disk that this server offers for folders does not answer";
            tracing::warn!("{why}");
            Fault::Unreachable(why.into())
        };
        timeout(DISK_ANSWERS, done).await.map_err(silent)?
    }

    /// Whether these folders are there, or can be made. Makes none.
    ///
    /// # Errors
    /// [`Fault::Setup`] where there are too many beside them already; [`Fault::Unreachable`] where the disk is in trouble.
    pub(super) async fn permit(
        self: &Arc<Self>,
        organization: Option<Uuid>,
        folders: Vec<(String, PathBuf)>,
    ) -> Result<(), Fault> {
        let look = move |this: &Self| folders.iter().try_for_each(|(name, path)| this.beside(name, path));
        self.on_disk(organization, look).await
    }

    /// Refuses a folder that is not there where there are as many beside it as one organization may have.
    fn beside(&self, name: &str, path: &Path) -> Result<(), Fault> {
        let Some(parent) = path.parent().filter(|_| !path.is_dir()) else { return Ok(()) };
        let most = self.most_of_organization;
        let found = folders_in(parent, most).map_err(|error| in_trouble(name, path, &error))?;
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
        make_private(path).map_err(|error| in_trouble(name, path, &error))
    }

    /// Makes the folders, if missing, for this server's user only, and offers them to the guest.
    ///
    /// # Errors
    /// [`Fault::Setup`] where a folder holds more than it may, or there are too many; [`Fault::Unreachable`] where one cannot be made
    /// or read.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        mut wasi: WasiCtxBuilder,
        organization: Option<Uuid>,
        folders: &[(String, PathBuf)],
    ) -> Result<(WasiCtxBuilder, Room), Fault> {
        let folders = folders.to_vec();
        let prepare = move |this: &Self| -> Result<_, Fault> {
            for (name, path) in &folders {
                if !path.is_dir() {
                    this.make(name, path)?;
                }
                let offered = wasi.preopened_dir(path, format!("/{name}"), FsPerms::ReadWrite);
                offered.map_err(|error| in_trouble(name, path, &error))?;
            }
            let room = this.room(folders)?;
            Ok((wasi, room))
        };
        self.on_disk(organization, prepare).await
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

/// The disk does not do what it should: the operator's matter, and so is where the folder lies.
fn in_trouble(name: &str, path: &Path, error: &dyn Display) -> Fault {
    tracing::warn!(folder = name, path = %path.display(), %error, "a folder that is offered to plugins cannot be used");
    Fault::Unreachable(format!("the folder `{name}` cannot be used just now: the server's log says why"))
}

/// What is left in the fullest of these folders.
fn left(folders: &[(String, PathBuf)], most: (u64, u64)) -> Result<(u64, u64), Fault> {
    let mut left = most;
    for (name, path) in folders {
        let (bytes, files) = holds(path, most.1).map_err(|error| in_trouble(name, path, &error))?;
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
        let all = Folders::new(&Bounds { folder_bytes: 8000, folder_files: 100, ..Bounds::default() }).unwrap();
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
        let all = Arc::new(Folders::new(&Bounds { folders_per_organization: 2, ..Bounds::default() }).unwrap());
        let own = |organization: &str, connection: &str| {
            vec![("audit".to_owned(), disk.path().join(organization).join(connection))]
        };
        let made = async |folders: &Offered| {
            let prepared = all.prepare(wasmtime_wasi::WasiCtx::builder(), None, folders).await;
            prepared.map(drop).map_err(|fault| fault.to_string())
        };
        assert_eq!(all.permit(None, own("a", "1")).await, Ok(()), "there is nothing");
        assert!(!disk.path().join("a").exists(), "and nothing is made");
        for connection in ["1", "2"] {
            assert_eq!(made(&own("a", connection)).await, Ok(()));
        }
        // A file beside them is none.
        std::fs::write(disk.path().join("a/notes"), "").unwrap();
        let why = made(&own("a", "3")).await.unwrap_err();
        assert!(why.contains("plugin_folders_per_organization") && why.contains("the operator"), "{why}");
        assert!(matches!(all.permit(None, own("a", "3")).await, Err(Fault::Setup(told)) if why.contains(&told)));
        assert!(!disk.path().join("a/3").exists());
        assert_eq!((made(&own("a", "2")).await, all.permit(None, own("a", "1")).await), (Ok(()), Ok(())));
        assert_eq!(made(&own("b", "3")).await, Ok(()), "another organization has its own");
        std::fs::remove_dir_all(disk.path().join("a/1")).unwrap();
        assert_eq!((all.permit(None, own("a", "3")).await, made(&own("a", "3")).await), (Ok(()), Ok(())));
    }

    /// A disk that does not answer whoever makes a folder, until the sender is dropped.
    fn silent(folders: &Arc<Folders>) -> std::sync::mpsc::Sender<()> {
        let (holds, held) = std::sync::mpsc::channel::<()>();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let disk = folders.clone();
        std::thread::spawn(move || {
            let _turn = disk.making.lock();
            holds.send(()).unwrap();
            // In the end it gives way by itself.
            released.recv_timeout(Duration::from_secs(20)).ok();
        });
        held.recv().unwrap();
        release
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_holds_no_thread_of_the_runtime() {
        let disk = tempfile::tempdir().unwrap();
        let all = Arc::new(Folders::new(&Bounds::default()).unwrap());
        let folders = vec![("audit".to_owned(), disk.path().join("own"))];
        let release = silent(&all);
        // This test has one thread: had it waited here, the folder would be made by now.
        let mut preparing = Box::pin(all.prepare(wasmtime_wasi::WasiCtx::builder(), None, &folders));
        assert!(futures::poll!(&mut preparing).is_pending());
        tokio::task::yield_now().await;
        assert!(futures::poll!(&mut preparing).is_pending());
        drop(release);
        assert!(preparing.await.is_ok());
    }

    #[test]
    fn a_disk_that_does_not_answer_holds_few_threads_and_none_that_others_wait_for() {
        // As the server's own, with one thread for all that takes long.
        let runtime =
            tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let disk = tempfile::tempdir().unwrap();
            let bounds = Bounds { folder_threads: 6, folder_threads_per_organization: 2, ..Bounds::default() };
            let all = Arc::new(Folders::new(&bounds).unwrap());
            let folders = vec![("audit".to_owned(), disk.path().join("own"))];
            let release = silent(&all);
            let prepare = |organization: u128| {
                let organization = Some(Uuid::from_u128(organization));
                let mut preparing = Box::pin(all.prepare(wasmtime_wasi::WasiCtx::builder(), organization, &folders));
                assert!(futures::FutureExt::now_or_never(&mut preparing).is_none());
                preparing
            };
            let of_one: Vec<_> = (0..20).map(|_| prepare(1)).collect();
            assert_eq!(all.turns.0.available_permits(), 6 - 2, "one organization has its share");
            // What nobody waits for any more still has its turn, as its thread still waits.
            drop(of_one);
            assert_eq!(all.turns.0.available_permits(), 6 - 2);
            let of_all: Vec<_> = (2..20).map(prepare).collect();
            assert_eq!(all.turns.0.available_permits(), 0);
            let hashed = tokio::task::spawn_blocking(|| "a password").await;
            assert_eq!(hashed.unwrap(), "a password");
            drop((of_all, release));
            assert!(
                all.prepare(wasmtime_wasi::WasiCtx::builder(), None, &folders).await.is_ok(),
                "it goes on by itself"
            );
        });
    }

    #[tokio::test]
    async fn a_disk_in_trouble_is_not_told_as_a_fault_of_the_connection_and_no_path_is_told() {
        let disk = tempfile::tempdir().unwrap();
        let all = Arc::new(Folders::new(&Bounds::default()).unwrap());
        // Where folders should be, there is a file.
        std::fs::write(disk.path().join("organization"), "").unwrap();
        let folders = vec![("audit".to_owned(), disk.path().join("organization/own"))];
        let prepared = all.prepare(wasmtime_wasi::WasiCtx::builder(), None, &folders).await.map(drop);
        for fault in [prepared, all.permit(None, folders.clone()).await] {
            let Err(Fault::Unreachable(told)) = fault else { panic!("{fault:?}") };
            assert!(told.contains("`audit`") && !told.contains(disk.path().to_str().unwrap()), "{told}");
        }
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
