//! What is in use on this host: which version a connection runs, loaded and ready.
//!
//! A registry never changes; another one takes its place. Who has taken a plugin out of it keeps that very version until
//! its call is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use semver::Version;

use super::{Plugin, PluginError, Refused, health};
use crate::domain::{connection::Kind, fault::Fault, plugin};

/// Which version a connection runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// This one and no other.
    pub pin: Option<String>,
    /// Otherwise the active one that is compatible with this; without it, whatever is active.
    pub line: Option<String>,
}

/// Why there is nothing to call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Missing {
    /// It is not known here. It may have come since this host last looked.
    #[error("{0}")]
    Unknown(String),
    /// It is known, and being loaded on this host.
    #[error("{0}")]
    Loading(String),
    /// It is known and does not load on this host.
    #[error("{0}")]
    Broken(String),
    /// A platform administrator put it into quarantine.
    #[error("{0}")]
    Quarantined(String),
}

/// When to come back where a version is still being loaded.
const LOADING: Duration = Duration::from_secs(1);

impl Missing {
    /// What is said to whoever asks for it there in the body of a request.
    pub(super) fn at(self, pointer: &str) -> Refused {
        match self {
            Missing::Loading(message) => Refused::Busy(message),
            missing => Refused::Faults(vec![Fault::new(pointer, missing.to_string())]),
        }
    }
}

impl From<Missing> for PluginError {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Unknown(message) | Missing::Quarantined(message) => PluginError::Config(message),
            Missing::Loading(message) => PluginError::Postponed { message, after: LOADING },
            // Another host may do better, and so may this one once somebody has looked after it.
            Missing::Broken(message) => PluginError::Unavailable { message, retry_after: None },
        }
    }
}

/// Every plugin, by kind and name.
#[derive(Clone, Default)]
pub(super) struct Registry {
    /// What it was made of; see `store::plugins::generation`.
    pub(super) generation: i64,
    kinds: BTreeMap<Kind, BTreeMap<String, Installed>>,
}

/// What is in use of one plugin.
#[derive(Clone, Default)]
pub(super) struct Installed {
    /// What new connections run.
    pub(super) active: Option<String>,
    /// What connections that follow a line run.
    pub(super) lines: BTreeMap<String, String>,
    /// Each version in use.
    pub(super) loaded: BTreeMap<String, Loaded>,
}

/// A version in use.
#[derive(Clone)]
pub(super) enum Loaded {
    /// It can be called.
    Ready(Arc<Plugin>),
    /// Not yet: it is being loaded.
    Loading,
    /// It cannot, and why. It is tried again.
    Failed(String),
    /// It must not, and why.
    Quarantined(String),
}

/// What is said where a version in quarantine is asked for.
pub(super) fn quarantined(name: &str, version: &str, reason: &str) -> String {
    format!(
        "version {version} of the plugin `{name}` is in quarantine: {reason}. A platform administrator put it there and can \
         release it or activate another version; `plugin_version` of the connection can name another one"
    )
}

impl Installed {
    /// Lets what ran before go on running in the place of a version that is not ready, as long as it may.
    ///
    /// `target` is what is to run and `before` what ran in its place; `may` says whether a version that ran may go on.
    pub(super) fn successor(
        loaded: &mut BTreeMap<String, Loaded>,
        target: Option<&String>,
        before: Option<(&String, &Loaded)>,
        may: impl Fn(&str, &Plugin) -> bool,
    ) -> Option<String> {
        let target = target?;
        let ready = !matches!(loaded.get(target), Some(Loaded::Loading | Loaded::Failed(_)));
        match before {
            Some((version, Loaded::Ready(plugin))) if !ready && may(version, plugin) => {
                loaded.insert(version.clone(), Loaded::Ready(plugin.clone()));
                Some(version.clone())
            }
            _ => Some(target.clone()),
        }
    }

    /// What connections that follow a line run, and how it is.
    pub(super) fn of_line(&self, line: &str) -> Option<(&String, &Loaded)> {
        self.state(self.lines.get(line)?)
    }

    /// What new connections run, and how it is.
    pub(super) fn of_active(&self) -> Option<(&String, &Loaded)> {
        self.state(self.active.as_ref()?)
    }

    fn state<'a>(&'a self, version: &'a String) -> Option<(&'a String, &'a Loaded)> {
        Some((version, self.loaded.get(version)?))
    }
}

impl Registry {
    /// An empty one, of this generation.
    pub(super) fn of(generation: i64) -> Self {
        Self { generation, ..Self::default() }
    }

    /// Adds what is in use of one plugin.
    pub(super) fn put(&mut self, kind: Kind, name: &str, installed: Installed) {
        self.kinds.entry(kind).or_default().insert(name.to_owned(), installed);
    }

    /// Adds a plugin as the one in use; tells if there was one of its kind and name already.
    pub(super) fn add(&mut self, plugin: Arc<Plugin>) -> bool {
        let version = plugin.manifest.version.clone();
        let line = Version::parse(&version).as_ref().map(plugin::line).unwrap_or_default();
        let installed = Installed {
            active: Some(version.clone()),
            lines: BTreeMap::from([(line, version.clone())]),
            loaded: BTreeMap::from([(version, Loaded::Ready(plugin.clone()))]),
        };
        self.kinds.entry(plugin.kind).or_default().insert(plugin.manifest.name.clone(), installed).is_none()
    }

    /// Adds one more version of a plugin that is there.
    pub(super) fn bring(&mut self, plugin: Arc<Plugin>) {
        let installed = self.kinds.entry(plugin.kind).or_default().entry(plugin.manifest.name.clone()).or_default();
        installed.loaded.insert(plugin.manifest.version.clone(), Loaded::Ready(plugin));
    }

    /// One plugin.
    pub(super) fn get(&self, kind: Kind, name: &str) -> Option<&Installed> {
        self.kinds.get(&kind)?.get(name)
    }

    /// The version that is wanted, ready to be called.
    pub(super) fn find(&self, kind: Kind, name: &str, wanted: &Wanted) -> Result<Arc<Plugin>, Missing> {
        let Some(installed) = self.get(kind, name) else {
            let of_kind = self.kinds.get(&kind).into_iter().flat_map(BTreeMap::keys);
            let known = of_kind.map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Missing::Unknown(format!(
                "there is no plugin `{name}` for {}s here; installed: {known}",
                kind.noun()
            )));
        };
        let version = match (&wanted.pin, &wanted.line) {
            (Some(pin), _) => Some(pin),
            (None, Some(line)) => installed.lines.get(line),
            (None, None) => installed.active.as_ref(),
        };
        let Some(version) = version else {
            return Err(Missing::Unknown(match &wanted.line {
                Some(line) => format!(
                    "no version of the plugin `{name}` that is compatible with {line} is active: activate one, or set `plugin_version` to null to follow what is active now"
                ),
                None => format!("no version of the plugin `{name}` is active"),
            }));
        };
        match installed.loaded.get(version) {
            Some(Loaded::Ready(plugin)) => Ok(plugin.clone()),
            Some(Loaded::Loading) => {
                Err(Missing::Loading(format!("version {version} of the plugin `{name}` is being loaded here")))
            }
            Some(Loaded::Failed(why)) => {
                Err(Missing::Broken(format!("version {version} of the plugin `{name}` does not load here: {why}")))
            }
            Some(Loaded::Quarantined(reason)) => Err(Missing::Quarantined(quarantined(name, version, reason))),
            None => Err(Missing::Unknown(format!("there is no version {version} of the plugin `{name}` here"))),
        }
    }

    /// A version that is loaded already, by its digest.
    pub(super) fn by_digest(&self, kind: Kind, name: &str, digest: &str) -> Option<Arc<Plugin>> {
        self.get(kind, name)?.loaded.values().find_map(|loaded| match loaded {
            Loaded::Ready(plugin) if plugin.digest == digest => Some(plugin.clone()),
            _ => None,
        })
    }

    /// A version that is in use and can be called.
    pub(super) fn version(&self, kind: Kind, name: &str, version: &str) -> Option<Arc<Plugin>> {
        match self.get(kind, name)?.loaded.get(version)? {
            Loaded::Ready(plugin) => Some(plugin.clone()),
            _ => None,
        }
    }

    /// Why a version does not load here, if it does not.
    pub(super) fn failure(&self, kind: Kind, name: &str, version: &str) -> Option<String> {
        match self.get(kind, name)?.loaded.get(version)? {
            Loaded::Failed(why) => Some(why.clone()),
            _ => None,
        }
    }

    /// What new connections run, of every plugin that has such a version.
    pub(super) fn active(&self) -> impl Iterator<Item = Arc<Plugin>> {
        let installed = self.kinds.values().flat_map(BTreeMap::values);
        installed.filter_map(|installed| match installed.loaded.get(installed.active.as_ref()?)? {
            Loaded::Ready(plugin) => Some(plugin.clone()),
            _ => None,
        })
    }

    /// Every version that is in use.
    pub(super) fn keys(&self) -> BTreeSet<health::Key> {
        let plugins = self.kinds.iter().flat_map(|(kind, plugins)| plugins.iter().map(|(name, i)| (*kind, name, i)));
        plugins
            .flat_map(|(kind, name, i)| i.loaded.keys().map(move |version| (kind, name.clone(), version.clone())))
            .collect()
    }
}
