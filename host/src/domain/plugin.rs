//! Versions of plugins: which are compatible with which, and where they came from.

use semver::Version;
use serde::{Deserialize, Serialize};

/// Where a version came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "TEXT", rename_all = "snake_case")]
#[schema(as = PluginOrigin)]
pub enum Origin {
    /// It is part of a release of the server.
    Bundled,
    /// A platform administrator uploaded it.
    Uploaded,
    /// It lay in `plugins_dir` when a server started.
    Folder,
}

impl Origin {
    /// As stored and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Bundled => "bundled",
            Origin::Uploaded => "uploaded",
            Origin::Folder => "folder",
        }
    }
}

/// What a version is compatible with, as cargo's caret means it: `1` for 1.x.y, `0.2` for 0.2.x, `0.0.3` for itself alone.
/// A connection that follows a line never gets what may not fit its configuration.
pub fn line(version: &Version) -> String {
    match (version.major, version.minor) {
        (0, 0) => format!("0.0.{}", version.patch),
        (0, minor) => format!("0.{minor}"),
        (major, _) => major.to_string(),
    }
}

/// Whether `new` comes after `old` in the order of semantic versions. What is no version comes after nothing.
pub fn is_newer(new: &str, old: &str) -> bool {
    match (Version::parse(new), Version::parse(old)) {
        (Ok(new), Ok(old)) => new > old,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_a_caret_allows() {
        for (version, expected) in [
            ("1.2.3", "1"),
            ("1.0.0-rc.1", "1"),
            ("12.0.0", "12"),
            ("0.2.3", "0.2"),
            ("0.10.0+build", "0.10"),
            ("0.0.3", "0.0.3"),
        ] {
            assert_eq!(line(&version.parse().unwrap()), expected);
        }
    }

    #[test]
    fn newer_is_by_number_not_by_text() {
        assert!(is_newer("0.10.0", "0.9.9") && is_newer("1.0.0", "1.0.0-rc.1"));
        assert!(!is_newer("1.0.0", "1.0.0") && !is_newer("nonsense", "1.0.0"));
    }
}
