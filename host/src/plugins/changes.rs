//! What a version of a plugin can reach that another cannot: what a platform administrator accepts with an upgrade.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{CapabilityView, ManifestView};
use crate::{
    domain::plugin::{Origin, SemanticVersion},
    store::plugins::Version,
};

/// The difference between two versions of a plugin: what activating `to` would change. Texts are compared as they are, so that a
/// pattern which became narrower is shown as one removed and one added.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = PluginChanges, example = json!({
    "from": "1.3.2",
    "to": "1.4.0",
    "grows": true,
    "capabilities_added": [{ "type": "http", "value": "https://login.example.com" }],
    "capabilities_removed": [],
    "secrets_added": [],
    "secrets_removed": [],
    "secret_hosts_added": [{ "secret": "api-key", "host": "https://login.example.com" }],
    "secret_hosts_removed": [],
    "config_schema_changed": true,
    "signer_changed": false,
    "signer_before": "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    "signer_after": "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
}))]
pub struct Changes {
    /// The version in use, which is compared with: the active one that `to` is compatible with, or else the one that new
    /// connections use. Null where nothing is in use.
    #[schema(value_type = Option<SemanticVersion>, required = true)]
    pub from: Option<String>,
    /// The version in question.
    #[schema(value_type = SemanticVersion)]
    pub to: String,
    /// Whether `to` reaches more than `from`, or somebody else signed it: then activating it needs `accept_capabilities`.
    pub grows: bool,
    /// What it asks for in addition.
    #[schema(max_items = 64)]
    pub capabilities_added: Vec<CapabilityView>,
    /// What it no longer asks for.
    #[schema(max_items = 64)]
    pub capabilities_removed: Vec<CapabilityView>,
    /// The names of the secrets that it asks for in addition.
    #[schema(max_items = 32)]
    pub secrets_added: Vec<String>,
    /// The names of the secrets that it no longer asks for.
    #[schema(max_items = 32)]
    pub secrets_removed: Vec<String>,
    /// Places that it may send a secret to in addition.
    #[schema(max_items = 1024)]
    pub secret_hosts_added: Vec<SecretHost>,
    /// Places that it no longer sends a secret to.
    #[schema(max_items = 1024)]
    pub secret_hosts_removed: Vec<SecretHost>,
    /// Whether configurations are checked against another JSON Schema.
    pub config_schema_changed: bool,
    /// Whether somebody else answers for it: the signer of what is in use, or this server for what came with it, did not
    /// make this version.
    pub signer_changed: bool,
    /// The Ed25519 key that the version in use is signed with; null for what came with the server, and for what is not signed.
    #[schema(required = true, pattern = "^ed25519:[0-9a-f]{64}$")]
    pub signer_before: Option<String>,
    /// The Ed25519 key that the version in question is signed with; null where it is not signed, or comes with the server.
    #[schema(required = true, pattern = "^ed25519:[0-9a-f]{64}$")]
    pub signer_after: Option<String>,
}

/// A secret, and a place that the plugin's requests may carry it to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[schema(as = PluginSecretHost)]
pub struct SecretHost {
    /// The secret's name.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-z0-9]+(-[a-z0-9]+)*$")]
    pub secret: String,
    /// The address, in which `*` and `{config.property}` are placeholders.
    #[schema(max_length = 1000)]
    pub host: String,
}

fn capabilities(manifest: &ManifestView) -> BTreeSet<CapabilityView> {
    manifest.capabilities.iter().cloned().collect()
}

fn secrets(manifest: &ManifestView) -> BTreeSet<String> {
    manifest.secrets.iter().map(|secret| secret.name.clone()).collect()
}

fn hosts(manifest: &ManifestView) -> BTreeSet<SecretHost> {
    let host = |secret: &str, host: &str| SecretHost { secret: secret.to_owned(), host: host.to_owned() };
    manifest.secrets.iter().flat_map(|slot| slot.hosts.iter().map(move |pattern| host(&slot.name, pattern))).collect()
}

/// What is in `these` and not in `those`.
fn more<T: Ord + Clone>(these: &BTreeSet<T>, those: &BTreeSet<T>) -> Vec<T> {
    these.difference(those).cloned().collect()
}

impl Changes {
    /// From what is in use, if anything is, to another version.
    pub fn between(before: Option<&ManifestView>, after: &ManifestView) -> Self {
        let (old, new) = (before.map(capabilities).unwrap_or_default(), capabilities(after));
        let (old_secrets, new_secrets) = (before.map(secrets).unwrap_or_default(), secrets(after));
        let (old_hosts, new_hosts) = (before.map(hosts).unwrap_or_default(), hosts(after));
        let capabilities_added = more(&new, &old);
        let secret_hosts_added = more(&new_hosts, &old_hosts);
        Self {
            from: before.map(|manifest| manifest.version.clone()),
            to: after.version.clone(),
            grows: !(capabilities_added.is_empty() && secret_hosts_added.is_empty()),
            capabilities_added,
            capabilities_removed: more(&old, &new),
            secrets_added: more(&new_secrets, &old_secrets),
            secrets_removed: more(&old_secrets, &new_secrets),
            secret_hosts_added,
            secret_hosts_removed: more(&old_hosts, &new_hosts),
            config_schema_changed: before.is_some_and(|manifest| manifest.config_schema != after.config_schema),
            signer_changed: false,
            signer_before: None,
            signer_after: None,
        }
    }

    /// With who answers for the two. Whoever signs the next version of a plugin takes over what its connections trusted it
    /// with, so another signer is growth. A signature where nobody answered before is none.
    #[must_use]
    pub fn signed(self, before: &Version, after: &Version) -> Self {
        let bundled = |version: &Version| version.origin == Origin::Bundled && version.signer.is_none();
        let answered = bundled(before) || before.signer.is_some();
        let signer_changed = answered && (before.signer != after.signer || bundled(before) != bundled(after));
        Self {
            grows: self.grows || signer_changed,
            signer_changed,
            signer_before: before.signer.clone(),
            signer_after: after.signer.clone(),
            ..self
        }
    }

    /// Each thing that it reaches in addition, in words.
    pub fn growth(&self) -> Vec<String> {
        let capabilities = self.capabilities_added.iter().map(|c| format!("{} {}", c.kind.as_str(), c.value));
        let hosts = self.secret_hosts_added.iter().map(|s| format!("the secret `{}` to {}", s.secret, s.host));
        let signer = self.signer_changed.then(|| {
            format!(
                "the signer: {} instead of {}",
                self.signer_after.as_deref().unwrap_or("nobody"),
                self.signer_before.as_deref().unwrap_or("this server, which it came with")
            )
        });
        capabilities.chain(hosts).chain(signer).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn manifest(version: &str, capabilities: &[(&str, &str)], secrets: &[(&str, &[&str])]) -> ManifestView {
        serde_json::from_value(json!({
            "kind": "audit_sink", "name": "n", "version": version, "title": "N", "description": "", "config_schema": {},
            "secrets": secrets.iter().map(|(name, hosts)| json!({ "name": name, "description": "", "hosts": hosts })).collect::<Vec<_>>(),
            "capabilities": capabilities.iter().map(|(kind, value)| json!({ "type": kind, "value": value })).collect::<Vec<_>>(),
        }))
        .unwrap()
    }

    #[test]
    fn it_grows_by_a_capability_or_by_a_host_of_a_secret_and_by_nothing_else() {
        let base = manifest("1.0.0", &[("http", "{config.url}")], &[("token", &["{config.url}"])]);
        let grows = |after: &ManifestView| Changes::between(Some(&base), after).grows;
        let same = manifest("1.0.1", &[("http", "{config.url}")], &[("token", &["{config.url}"])]);
        assert!(!grows(&same));
        assert!(!grows(&manifest("1.1.0", &[], &[("token", &["{config.url}"])])), "less");
        assert!(!grows(&manifest("1.1.0", &[], &[("token", &[]), ("other", &[])])), "a secret that goes nowhere");
        assert!(grows(&manifest("1.1.0", &[("http", "https://*")], &[])));
        assert!(grows(&manifest("1.1.0", &[("tcp", "{config.url}")], &[])), "the same text, another type");
        assert!(grows(&manifest("1.1.0", &[("http", "{config.url}"), ("reveal_secret", "token")], &[])));
        assert!(grows(&manifest("1.1.0", &[], &[("token", &["{config.url}", "https://evil.example"])])));
        assert!(grows(&manifest("1.1.0", &[], &[("other", &["{config.url}"])])), "another secret to the same host");
    }

    #[test]
    fn another_signer_is_growth_and_a_first_one_is_not() {
        let version = |origin, signer: Option<&str>| Version {
            plugin_id: uuid::Uuid::nil(),
            version: "1.0.0".into(),
            line: "1".into(),
            digest: "aa".into(),
            size: 1,
            origin,
            signer: signer.map(str::to_owned),
            signature: None,
            manifest: "{}".into(),
            enabled: true,
            created_by: None,
            created_at: chrono::DateTime::UNIX_EPOCH,
        };
        let bare = manifest("1.0.0", &[], &[]);
        let changes = |before: &Version, after: &Version| Changes::between(Some(&bare), &bare).signed(before, after);
        let (bundled, unsigned) = (version(Origin::Bundled, None), version(Origin::Uploaded, None));
        let (ours, theirs) =
            (version(Origin::Uploaded, Some("ed25519:aa")), version(Origin::Folder, Some("ed25519:bb")));
        for (before, after) in [(&ours, &ours), (&unsigned, &unsigned), (&unsigned, &ours), (&bundled, &bundled)] {
            assert!(!changes(before, after).grows, "{before:?} {after:?}");
        }
        for (before, after) in
            [(&ours, &theirs), (&ours, &unsigned), (&bundled, &unsigned), (&bundled, &ours), (&ours, &bundled)]
        {
            let changes = changes(before, after);
            assert!(changes.grows && changes.growth().len() == 1, "{changes:?}");
        }
        let said = changes(&ours, &theirs).growth();
        assert_eq!(said, ["the signer: ed25519:bb instead of ed25519:aa"]);
        assert!(changes(&bundled, &unsigned).growth()[0].contains("nobody instead of this server"));
    }

    #[test]
    fn from_nothing_everything_is_growth_and_each_is_named() {
        let first = manifest("1.0.0", &[("http", "{config.url}")], &[("token", &["{config.url}"])]);
        let changes = Changes::between(None, &first);
        assert!(changes.grows && changes.from.is_none() && !changes.config_schema_changed);
        assert_eq!(changes.growth(), ["http {config.url}", "the secret `token` to {config.url}"]);
        assert!(!Changes::between(None, &manifest("1.0.0", &[], &[])).grows, "what asks for nothing needs no consent");
    }
}
