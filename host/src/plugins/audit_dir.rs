//! Setting `audit_dir`: what an operator who comes from an earlier version has to know of it.

use std::path::Path;

/// Entries of a folder that are looked at.
const LOOKED_AT: usize = 10_000;

/// What to tell the operator where the sink `file` wrote as it did in earlier versions: into `DATA_DIR/audit` unless set, and into that
/// folder itself.
pub(super) fn earlier_layout(audit_dir: Option<&Path>, data_dir: &Path) -> Option<String> {
    let by_default = data_dir.join("audit");
    let folder = audit_dir.unwrap_or(&by_default);
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().take(LOOKED_AT);
    let mut written = files.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "jsonl"));
    written.any(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())).then(|| {
        let folder = folder.display();
        let found = format!("{folder} holds files that audit sinks of an earlier version wrote");
        if audit_dir.is_some() {
            format!("{found}: new ones lie one folder lower, in {folder}/CONNECTION; move the old ones where you keep them")
        } else {
            format!(
                "{found}, but `audit_dir` has no default any more, so sinks with the plugin `file` deliver nothing: set it \
                 to {folder} to go on; new files lie one folder lower, in {folder}/CONNECTION"
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_an_earlier_version_are_told_of() {
        let data = tempfile::tempdir().unwrap();
        let audit = data.path().join("audit");
        let told = |set: bool| earlier_layout(set.then_some(audit.as_path()), data.path());
        assert_eq!((told(false), told(true)), (None, None), "there is no folder");
        std::fs::create_dir_all(audit.join("0190.jsonl")).unwrap();
        std::fs::write(audit.join("0190.jsonl/audit-0190.jsonl"), "{}").unwrap();
        assert_eq!((told(false), told(true)), (None, None), "as it is written now");
        std::fs::write(audit.join("audit-0190.jsonl"), "{}").unwrap();
        assert!(told(false).unwrap().contains("`audit_dir` has no default any more"));
        assert!(told(true).unwrap().contains("one folder lower"));
    }
}
