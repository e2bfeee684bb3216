//! One connection's current file and those before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use kaizen_plugin::{Error, Result, log};

/// Files with the same rotation name beyond this are a defect.
const MOST_OF_ONE_NAME: u32 = 1000;

/// One connection's files: `STEM.jsonl`, and `STEM.before-SEQUENCE.jsonl` for what was written earlier.
pub struct Journal {
    folder: PathBuf,
    stem: String,
}

impl Journal {
    /// The files with this stem; nothing is opened yet.
    pub fn new(folder: impl Into<PathBuf>, stem: &str) -> Self {
        Self { folder: folder.into(), stem: stem.to_owned() }
    }

    /// The current file's name.
    pub fn file_name(&self) -> String {
        format!("{}.jsonl", self.stem)
    }

    fn path(&self) -> PathBuf {
        self.folder.join(self.file_name())
    }

    /// Appends lines and waits until they are on the disk. A line cut short by a crash is closed first, so that it
    /// spoils no other.
    pub fn append(&self, lines: &[u8]) -> Result<()> {
        let path = self.path();
        let began = !exists(&path)?;
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).map_err(failed)?;
            if last != *b"\n" {
                log::warn!("{} ended in the middle of a line", self.file_name());
                file.write_all(b"\n").map_err(failed)?;
            }
        }
        file.write_all(lines).and_then(|()| file.sync_all()).map_err(failed)?;
        if began {
            self.sync_folder()?;
        }
        Ok(())
    }

    /// Begins a new file if the current one has at least `limit` bytes. `next` is the sequence of the event to come.
    pub fn rotate(&self, limit: u64, next: u64) -> Result<()> {
        let path = self.path();
        match fs::metadata(&path) {
            Ok(now) if now.len() >= limit => {}
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        // A batch larger than the limit that is delivered twice comes by here twice with the same sequence.
        for copy in 0..MOST_OF_ONE_NAME {
            let copy = if copy == 0 { String::new() } else { format!(".{copy}") };
            let target = self.folder.join(format!("{}.before-{next:020}{copy}.jsonl", self.stem));
            if !exists(&target)? {
                fs::rename(&path, &target).map_err(failed)?;
                return self.sync_folder();
            }
        }
        Err(Error::Internal(format!("{} files before event {next}", MOST_OF_ONE_NAME)))
    }

    /// A new name is on the disk only once its folder is; not every platform can do it or needs it.
    fn sync_folder(&self) -> Result<()> {
        match File::open(&self.folder).and_then(|folder| folder.sync_all()) {
            Err(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::Unsupported
                        | ErrorKind::InvalidInput
                        | ErrorKind::IsADirectory
                        | ErrorKind::PermissionDenied
                ) =>
            {
                Err(failed(error))
            }
            _ => Ok(()),
        }
    }
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn failed(error: io::Error) -> Error {
    match error.kind() {
        // Without the grant the folder isn't there at all.
        ErrorKind::NotFound | ErrorKind::NotADirectory => Error::Config(
            "the folder `audit` is not there: the operator has to offer a folder under this name".to_owned(),
        ),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Error::Config(format!("the folder `audit` can't be written: {error}"))
        }
        _ => Error::unavailable(format!("the folder `audit`: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("kaizen-audit-file-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn lines_are_appended_and_a_broken_one_is_closed() {
        let folder = folder("append");
        let journal = Journal::new(&folder, "a");
        journal.append(b"{\"a\":1}\n").unwrap();
        journal.append(b"").unwrap();
        OpenOptions::new().append(true).open(folder.join("a.jsonl")).unwrap().write_all(b"{\"cut").unwrap();
        journal.append(b"{\"a\":2}\n{\"a\":3}\n").unwrap();
        assert_eq!(fs::read_to_string(folder.join("a.jsonl")).unwrap(), "{\"a\":1}\n{\"cut\n{\"a\":2}\n{\"a\":3}\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_full_file_is_set_aside_and_none_is_written_over() {
        let folder = folder("rotate");
        let journal = Journal::new(&folder, "a");
        journal.rotate(10, 1).unwrap();
        journal.append(b"12345\n").unwrap();
        journal.rotate(10, 2).unwrap();
        assert_eq!(names(&folder), ["a.jsonl"]);
        for _ in 0..3 {
            journal.append(b"67890\n").unwrap();
            journal.append(b"67890\n").unwrap();
            journal.rotate(10, 4).unwrap();
        }
        let before = "a.before-00000000000000000004";
        assert_eq!(
            names(&folder),
            [format!("{before}.1.jsonl"), format!("{before}.2.jsonl"), format!("{before}.jsonl")]
        );
        let all: String = names(&folder).iter().map(|name| fs::read_to_string(folder.join(name)).unwrap()).collect();
        assert_eq!(all.lines().count(), 7);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_missing_folder_is_the_operators_to_offer() {
        let journal = Journal::new("/nowhere/at/all", "a");
        for outcome in [journal.append(b"x\n"), journal.append(b"")] {
            assert!(matches!(outcome, Err(Error::Config(why)) if why.contains("`audit`")));
        }
        journal.rotate(1, 1).unwrap();
    }
}
