//! `kaizen plugin check`: would the server take it?

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{load, size};
use crate::{
    config::Config,
    plugins::{
        CapabilityKind, CapabilityView, ManifestView, Plugins,
        signature::{Signature, Trust},
    },
    sandbox::{grants::Template, pattern::Pattern},
};

/// Load a plugin exactly as the server would, and show what it is and what it asks for
#[derive(Debug, Args)]
pub struct Check {
    /// The component, or the name of a bundled plugin
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    /// Runs to its end.
    ///
    /// # Errors
    /// Why the server would refuse it.
    pub async fn run(self, config: &Config) -> anyhow::Result<()> {
        let loaded = load::load(&self.file, config.egress(), config.plugin_bounds.clone(), &config.data_dir).await?;
        let (kind, origin, wasm) = loaded.artifact;
        let most = config.limits.plugins_max_bytes;
        anyhow::ensure!(
            wasm.len() <= most || !self.file.exists(),
            "{origin}: it has {} bytes; at most {most} are allowed (plugins_max_bytes)",
            wasm.len()
        );
        let load = || Plugins::within(loaded.sandbox.clone(), vec![loaded.artifact], BTreeMap::new());
        let manifests = load().await?.manifests();
        let Some(manifest) = manifests.first() else { anyhow::bail!("{origin}: nothing was loaded") };
        anyhow::ensure!(load().await?.manifests() == manifests, "{origin}: `describe` does not say the same each time");
        let signer = self.signer(config, wasm, manifest).with_context(|| origin.to_owned())?;
        let digest = hex::encode(Sha256::digest(wasm));
        let asked: Vec<(&CapabilityView, String)> = manifest
            .capabilities
            .iter()
            .map(|capability| (capability, granted(capability, &config.egress_allow)))
            .collect();
        if self.json {
            let capabilities: Vec<_> = asked
                .iter()
                .map(|(capability, granted)| json!({ "type": capability.kind, "value": capability.value, "granted": granted }))
                .collect();
            return super::super::print(&serde_json::to_string_pretty(&json!({
                "file": origin, "kind": kind.as_str(), "bytes": wasm.len(), "sha256": digest, "signer": signer, "manifest": manifest,
                "imports": loaded.imports, "exports": loaded.exports, "capabilities": capabilities,
                "compiled_in_ms": u64::try_from(loaded.compiled_in.as_millis()).unwrap_or(u64::MAX),
            }))?);
        }
        let mut text = text(manifest, &asked)?;
        writeln!(text, "size           {}, compiled in {:.1} s", size(wasm.len()), loaded.compiled_in.as_secs_f64())?;
        writeln!(text, "sha256         {digest}")?;
        writeln!(text, "signed with    {}", signer.as_deref().unwrap_or("nothing"))?;
        list(&mut text, "imports", &loaded.imports)?;
        list(&mut text, "exports", &loaded.exports)?;
        super::super::print(&format!("{text}\nThe server takes it."))
    }
}

impl Check {
    /// Who signed it, by the `.sig` file beside it, checked against the same keys as the server's.
    ///
    /// # Errors
    /// Why the server would not trust it.
    fn signer(&self, config: &Config, wasm: &[u8], manifest: &ManifestView) -> anyhow::Result<Option<String>> {
        if !self.file.exists() {
            // A bundled plugin is part of the server.
            return Ok(None);
        }
        let mut beside = self.file.clone().into_os_string();
        beside.push(".sig");
        let signature = match std::fs::read_to_string(&beside) {
            Ok(text) => Some(text.parse::<Signature>()?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).context("its .sig file"),
        };
        let trust = Trust::new(config.plugins_trusted_keys.clone());
        trust.check(wasm, signature.as_ref())?;
        let signer = signature.map(|signature| signature.key.to_string());
        trust.permits(signer.as_deref(), manifest.kind, &manifest.name)?;
        Ok(signer)
    }
}

fn text(manifest: &ManifestView, asked: &[(&CapabilityView, String)]) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(text, "{} {}: {}", manifest.name, manifest.version, super::line(&manifest.title))?;
    if !manifest.description.is_empty() {
        writeln!(text, "{}", super::line(&manifest.description))?;
    }
    writeln!(text, "\nkind           {}", manifest.kind.as_str().replace('_', " "))?;
    let properties = manifest.config_schema.get("properties").and_then(serde_json::Value::as_object);
    let required = manifest.config_schema.get("required").and_then(serde_json::Value::as_array);
    let properties: Vec<String> = properties
        .into_iter()
        .flatten()
        .map(|(name, schema)| {
            let needed = required.is_some_and(|required| required.iter().any(|r| r == name));
            let about = schema.get("description").and_then(serde_json::Value::as_str).unwrap_or_default();
            let about = about.lines().next().unwrap_or_default();
            format!("{name}{}  {about}", if needed { " (required)" } else { "" }).trim_end().to_owned()
        })
        .collect();
    list(&mut text, "configuration", &properties)?;
    let secrets: Vec<String> = manifest
        .secrets
        .iter()
        .map(|secret| {
            let hosts = if secret.hosts.is_empty() {
                "in no request".to_owned()
            } else {
                format!("to {}", secret.hosts.join(", "))
            };
            format!("{}, {hosts}: {}", secret.name, secret.description)
        })
        .collect();
    list(&mut text, "secrets", &secrets)?;
    let asked: Vec<String> = asked
        .iter()
        .map(|(capability, granted)| format!("{} {}: {granted}", capability.kind.as_str(), capability.value))
        .collect();
    list(&mut text, "capabilities", &asked)?;
    Ok(text)
}

fn list(text: &mut String, name: &str, items: &[String]) -> std::fmt::Result {
    if items.is_empty() {
        return writeln!(text, "{name:<13}  none");
    }
    for (at, item) in items.iter().enumerate() {
        writeln!(text, "{:<13}  {}", if at == 0 { name } else { "" }, super::line(item))?;
    }
    Ok(())
}

/// What becomes of a capability under these settings.
fn granted(capability: &CapabilityView, allow: &[Pattern]) -> String {
    let template = match capability.kind {
        CapabilityKind::Http => Template::http(&capability.value),
        CapabilityKind::Tcp => Template::tcp(&capability.value),
        CapabilityKind::Directory if capability.value == "audit" => {
            return "a folder of each connection's own in `audit_dir`".into();
        }
        CapabilityKind::Directory => return "not offered: this server has only the folder `audit`".into(),
        CapabilityKind::RevealSecret => return "granted: the plugin sees the secret itself".into(),
    };
    let Ok(template) = template else { return "not understood".into() };
    if template.properties().next().is_some() {
        return "as the connection's configuration says, within `egress_allow`".into();
    }
    let pattern = template.resolve(&serde_json::Value::Null).ok().flatten();
    match pattern.and_then(|pattern| pattern.target()) {
        Some(target) if allow.iter().any(|pattern| pattern.covers(&target)) => "granted".into(),
        Some(_) => "not granted: `egress_allow` of this server does not cover it".into(),
        None => "granted within `egress_allow`".into(),
    }
}
