//! Versions of plugins: which are compatible with which, and where they came from.

use semver::Version;
use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, Type},
    },
};

/// The schema of a version's number in the OpenAPI document: what [`Version::parse`] takes.
pub struct SemanticVersion;

/// As ECMA-262 writes it (semver.org).
const SEMANTIC_VERSION: &str = concat!(
    r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)",
    r"(-(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*)?",
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$"
);

impl PartialSchema for SemanticVersion {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("A semantic version (Semantic Versioning 2.0.0)."))
            .pattern(Some(SEMANTIC_VERSION))
            .examples(["1.4.0"])
            .into()
    }
}

impl ToSchema for SemanticVersion {}

/// Where a version of a plugin came from: it is part of a release of the server (`bundled`), a platform administrator uploaded
/// it (`uploaded`), or it lay in the server's `plugins_dir` (`folder`).
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
    fn the_schema_takes_the_versions_that_the_server_takes() {
        let schema = serde_json::to_value(SemanticVersion::schema()).unwrap();
        let schema = jsonschema::draft202012::new(&schema).unwrap();
        for (version, good) in [
            ("0.0.0", true),
            ("1.2.3", true),
            ("10.20.30", true),
            ("1.0.0-rc.1", true),
            ("1.0.0-0a.-.x-y+build.01-", true),
            ("1.0.0+007", true),
            ("", false),
            ("1", false),
            ("1.2", false),
            ("v1.2.3", false),
            ("01.2.3", false),
            ("1.2.3-01", false),
            ("1.2.3-", false),
            ("1.2.3+", false),
            ("1.2.3-a..b", false),
            (" 1.2.3", false),
            ("1.2.3-é", false),
        ] {
            let valid = schema.is_valid(&version.into());
            assert_eq!((Version::parse(version).is_ok(), valid), (good, good), "{version:?}");
        }
    }

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
