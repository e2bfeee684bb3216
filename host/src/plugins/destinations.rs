//! Where a connection's secrets can go. Whoever may change a connection must not thereby be able to read its secrets: a
//! change that sends one elsewhere needs the secret again.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::SecretString;
use serde_json::Value;
use url::Url;

use super::{Manifest, Plugins, Wanted};
use crate::{
    domain::{connection::Kind, fault::Fault},
    sandbox::grants::{Capability, Template},
};

/// Where the configuration as a whole points: what capabilities resolve to, and every address in it. A secret that is
/// bound to no host is used by the server itself or read by the plugin, so it may go to any of these.
fn everywhere(manifest: &Manifest, config: &Value) -> BTreeSet<String> {
    let templates = manifest.capabilities.iter().filter_map(|capability| match capability {
        Capability::Http(template) | Capability::Tcp(template) => Some(template),
        _ => None,
    });
    let mut found = resolved(templates, config);
    let properties = config.as_object().into_iter().flatten();
    let urls = properties.filter_map(|(_, value)| Url::parse(value.as_str()?).ok()).filter(Url::has_host);
    found.extend(urls.map(|url| url.origin().ascii_serialization()));
    found
}

fn resolved<'a>(templates: impl Iterator<Item = &'a Template>, config: &Value) -> BTreeSet<String> {
    templates.filter_map(|template| template.resolve(config).ok()?).map(|pattern| pattern.to_string()).collect()
}

/// Where one secret can go.
fn reach(manifest: &Manifest, secret: &str, config: &Value) -> BTreeSet<String> {
    match manifest.slots.iter().find(|slot| slot.name == secret) {
        None => BTreeSet::new(),
        Some(slot) if slot.hosts.is_empty() => everywhere(manifest, config),
        Some(slot) => resolved(slot.hosts.iter(), config),
    }
}

impl Plugins {
    /// Secrets that a change of the configuration or of the version would send to where they did not go before, and that
    /// do not come with the change: each a fault at `/secrets/NAME`.
    pub fn redirected(
        &self,
        kind: Kind,
        plugin: &str,
        (before, as_before): (&Value, &Wanted),
        (after, as_after): (&Value, &Wanted),
        stored: &BTreeMap<String, SecretString>,
        supplied: impl Fn(&str) -> bool,
    ) -> Vec<Fault> {
        let registry = self.0.registry.load();
        // What does not run has sent nothing anywhere; what is to run was found before.
        let old = registry.find(kind, plugin, as_before).ok();
        let Ok(new) = registry.find(kind, plugin, as_after) else { return Vec::new() };
        let slots = new.manifest.slots.iter();
        let kept = slots.filter(|slot| stored.contains_key(&slot.name) && !supplied(&slot.name));
        kept.filter_map(|slot| {
            let known = old.as_ref().map(|old| reach(&old.manifest, &slot.name, before)).unwrap_or_default();
            let new = reach(&new.manifest, &slot.name, after);
            let new: Vec<String> = new.into_iter().filter(|place| !known.contains(place)).collect();
            let message = format!(
                "send it again: the new configuration takes it to {}, where it did not go before",
                new.join(", ")
            );
            (!new.is_empty()).then(|| Fault::new(format!("/secrets/{}", slot.name), message))
        })
        .collect()
    }
}
