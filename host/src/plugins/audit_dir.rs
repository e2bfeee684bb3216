//! Setting `audit_dir`: the folders that connections are given in it, and what an operator who comes from an earlier version has
//! to know of it.

use std::{
    cell::Cell,
    collections::BTreeMap,
    ffi::OsStr,
    fs::DirEntry,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::Plugins;
use crate::{
    domain::id::OrganizationId,
    sandbox::{Fault, grants::Capability},
    store::connections::Connection,
};

/// Entries that are looked at in search of what an earlier version wrote.
const LOOKED_AT: usize = 10_000;

/// Why a connection is given no folder.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// Its organization has as many as it may.
    #[error("{0}")]
    Full(String),
    /// The disk is in trouble, which says nothing of the connection.
    #[error("{0}")]
    Disk(String),
}

/// Where a connection's own folder is in one that is offered. Those of an organization lie beside each other, so that they can be
/// counted, and told apart, also when their connections are deleted.
pub(super) fn own(organization: OrganizationId, connection: Uuid) -> PathBuf {
    Path::new(&organization.to_string()).join(connection.to_string())
}

impl Plugins {
    /// The folders that a connection may be given, each its own and nobody else's.
    pub(super) fn folders(&self, organization: OrganizationId, connection: Uuid) -> BTreeMap<String, PathBuf> {
        let owners = &self.0.folder_owners;
        if !owners.is_empty() && !owners.contains(&organization) {
            return BTreeMap::new();
        }
        let own = own(organization, connection);
        self.0.folders.iter().map(|(name, path)| (name.clone(), path.join(&own))).collect()
    }

    /// Whether there is room for the folders that a connection will be given, before it is stored.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub async fn room_for_folders(&self, connection: &Connection) -> Result<(), RoomError> {
        let wanted = super::wanted(connection);
        // What is not there is refused elsewhere.
        let Ok(plugin) = self.0.registry.load().find(connection.kind, &connection.plugin, &wanted) else {
            return Ok(());
        };
        let asks = |name: &str| plugin.manifest.capabilities.contains(&Capability::Directory(name.to_owned()));
        let mut folders: Vec<(String, PathBuf)> =
            self.folders(connection.organization_id, connection.id).into_iter().collect();
        folders.retain(|(name, _)| asks(name));
        if folders.is_empty() {
            return Ok(());
        }
        let organization = Some(connection.organization_id.into());
        self.0.sandbox.permits_folders(organization, folders).await.map_err(|fault| match fault {
            Fault::Setup(why) => RoomError::Full(why),
            fault => RoomError::Disk(fault.to_string()),
        })
    }
}

/// Looks for that, and tells the operator. Nobody waits for it: the disk may be silent.
pub(super) fn look_for_earlier_layout(audit_dir: Option<PathBuf>, data_dir: PathBuf) {
    let look = move || {
        if let Some(told) = earlier_layout(audit_dir.as_deref(), &data_dir) {
            tracing::warn!("{told} (host/docs/operations.md has more)");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("kaizen-audit-dir".into()).spawn(look) {
        tracing::debug!(%error, "nobody looks for files that earlier versions wrote");
    }
}

/// What to tell the operator where the sink `file` wrote as it did in earlier versions: into `DATA_DIR/audit` unless set, and into that
/// folder itself, or into folders of connections right in it.
fn earlier_layout(audit_dir: Option<&Path>, data_dir: &Path) -> Option<String> {
    let by_default = data_dir.join("audit");
    let folder = audit_dir.unwrap_or(&by_default);
    let left = Cell::new(LOOKED_AT);
    let written = entries(folder, &left)
        .any(|entry| is_written(&entry) || entries(&entry.path(), &left).any(|entry| is_written(&entry)));
    written.then(|| {
        let folder = folder.display();
        let found = format!("{folder} holds files that audit sinks of an earlier version wrote");
        if audit_dir.is_some() {
            format!(
                "{found}: new ones lie in {folder}/ORGANIZATION/CONNECTION; move the old ones where you keep them"
            )
        } else {
            format!(
                "{found}, but `audit_dir` has no default any more, so sinks with the plugin `file` deliver nothing: set it \
                 to {folder} to go on; new files lie in {folder}/ORGANIZATION/CONNECTION"
            )
        }
    })
}

/// As many as are left to be looked at.
fn entries<'a>(folder: &Path, left: &'a Cell<usize>) -> impl Iterator<Item = DirEntry> + use<'a> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.take_while(move |_| left.replace(left.get().saturating_sub(1)) > 0)
}

fn is_written(entry: &DirEntry) -> bool {
    entry.path().extension() == Some(OsStr::new("jsonl")) && entry.file_type().is_ok_and(|kind| kind.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_entries_are_looked_at_in_all() {
        let data = tempfile::tempdir().unwrap();
        for (folder, file) in [("a", "1"), ("a", "2"), ("b", "3")] {
            std::fs::create_dir_all(data.path().join(folder)).unwrap();
            std::fs::write(data.path().join(folder).join(file), "").unwrap();
        }
        let left = Cell::new(4);
        let found: usize = entries(data.path(), &left).map(|entry| entries(&entry.path(), &left).count()).sum();
        assert!(found < 3 && left.get() == 0, "{found} files: each entry of each folder counts");
    }

    #[test]
    fn files_of_an_earlier_version_are_told_of() {
        let data = tempfile::tempdir().unwrap();
        let audit = data.path().join("audit");
        let told = |set: bool| earlier_layout(set.then_some(audit.as_path()), data.path());
        assert_eq!((told(false), told(true)), (None, None), "there is no folder");
        std::fs::create_dir_all(audit.join("0180/0190.jsonl")).unwrap();
        std::fs::write(audit.join("0180/0190.jsonl/audit-0190.jsonl"), "{}").unwrap();
        assert_eq!((told(false), told(true)), (None, None), "as it is written now");
        for earlier in ["audit-0190.jsonl", "0190/audit-0190.jsonl"] {
            std::fs::create_dir_all(audit.join("0190")).unwrap();
            std::fs::write(audit.join(earlier), "{}").unwrap();
            assert!(told(false).unwrap().contains("`audit_dir` has no default any more"), "{earlier}");
            assert!(told(true).unwrap().contains("ORGANIZATION/CONNECTION"), "{earlier}");
            std::fs::remove_file(audit.join(earlier)).unwrap();
        }
    }
}
