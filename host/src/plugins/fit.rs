//! Whether the connections that would run another version can: those that follow what it takes the place of, of all
//! organizations. A schema may become stricter and a secret may be added within what semantic versions call compatible;
//! a connection that does not fit would fail at its next call, in another organization than that of whoever activates.
//!
//! That is looked at before the transaction of the change ([`Examined`]). Within it nothing can begin to follow the plugin, nor change
//! its configuration or its secrets (see [`rows::hold`]). A connection that did so in between is looked at once more, before another
//! try; in the last try, within the transaction, or a tenant who goes on changing his connections would keep everybody from it. What
//! changed nothing of what a version has to fit, such as another name, needs no further look.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Plugin, install::ChangeError};
use crate::{
    clock::Clock,
    domain::{connection::Kind, fault::Fault, id::OrganizationId},
    store::{
        Connection, Store, Tx,
        plugins::{self as rows, Follower, Following},
    },
};

/// Connections read at once, with their configurations and without.
const BATCH: i64 = 200;
const FOLLOWING: i64 = 5000;
/// How often connections that changed meanwhile are looked at again before the transaction.
const TRIES: u32 = 5;
/// Connections that are named in a refusal, and faults that are named of each.
const NAMED: usize = 20;
const FAULTS: usize = 5;

/// A connection that a version does not fit.
#[derive(Debug, Clone)]
pub struct Misfit {
    /// Which.
    pub id: Uuid,
    /// Whose.
    pub organization_id: OrganizationId,
    /// What it runs now.
    pub runs: String,
    /// By JSON pointer into the connection; without the values.
    pub faults: Vec<Fault>,
}

/// All that a version does not fit, at least one.
#[derive(Debug)]
pub struct Misfits {
    /// Of which plugin.
    pub kind: Kind,
    /// The version.
    pub version: String,
    /// They.
    pub connections: Vec<Misfit>,
}

impl Misfits {
    /// The first of them, each fault by the connection's path in the API and its place there.
    pub fn faults(&self) -> Vec<Fault> {
        let path = match self.kind {
            Kind::IdentityProvider => "identity-connections",
            Kind::DeploymentTarget => "gateways",
            Kind::AuditSink => "audit-sinks",
        };
        let named = self.connections.iter().take(NAMED);
        named
            .flat_map(|misfit| {
                misfit.faults.iter().map(move |fault| {
                    let pointer = format!("/{path}/{}{}", misfit.id, fault.pointer);
                    Fault::new(pointer, format!("of organization {}: {}", misfit.organization_id, fault.message))
                })
            })
            .collect()
    }

    /// What is told of them in a log and in the audit trail.
    pub fn summary(&self) -> String {
        let first: Vec<String> = self.faults().iter().map(|f| format!("{} ({})", f.pointer, f.message)).collect();
        format!("it does not fit {} connections: {}", self.connections.len(), first.join("; "))
    }
}

/// What versions make of connections, looked at before the transaction in which it matters: it may take long, and must keep nobody from
/// the database.
pub struct Examined {
    /// By digest of the version, and connection.
    known: HashMap<(String, Uuid), Looked>,
    /// How often a transaction may still end because a connection has to be looked at again.
    tries: u32,
}

impl Default for Examined {
    fn default() -> Self {
        Self { known: HashMap::new(), tries: TRIES }
    }
}

/// What a version makes of a connection.
struct Looked {
    /// Of the connection, when it was read last.
    revision: i64,
    /// See [`digest`].
    digest: [u8; 32],
    faults: Vec<Fault>,
}

/// SHA-256 of what a version has to fit of a connection.
fn digest(Follower { config, secret_names, .. }: &Follower) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(config.0.to_string());
    for name in &secret_names.0 {
        hash.update([0_u8]);
        hash.update(name);
    }
    hash.finalize().into()
}

/// The first faults that a version finds in a connection.
async fn faults(ready: &Plugin, kind: Kind, of: &Follower) -> Result<Vec<Fault>, ChangeError> {
    let mut faults = ready.manifest.misfits(kind, &of.config.0, &of.secret_names.0).await?;
    faults.truncate(FAULTS);
    Ok(faults)
}

impl Examined {
    /// Looks at the connections that follow a line, or whatever is active, with a version; not again at those which are as they were.
    ///
    /// # Errors
    /// [`ChangeError::Busy`], and as the database says.
    pub async fn look(
        &mut self,
        store: &Store,
        ready: &Plugin,
        plugin: (Kind, &str),
        line: &str,
    ) -> Result<(), ChangeError> {
        let mut after = Uuid::nil();
        loop {
            let batch = rows::followers_after(&mut store.read().await?, plugin, line, after, BATCH).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = last.id;
            for follower in batch {
                let (key, revision, digest) =
                    ((ready.digest.clone(), follower.id), follower.revision, digest(&follower));
                match self.known.get_mut(&key) {
                    Some(known) if known.digest == digest => known.revision = revision,
                    _ => {
                        let faults = faults(ready, plugin.0, &follower).await?;
                        self.known.insert(key, Looked { revision, digest, faults });
                    }
                }
            }
        }
    }

    /// A transaction ended with [`ChangeError::Moved`], and is tried again.
    pub fn again(&mut self) {
        self.tries = self.tries.saturating_sub(1);
    }

    /// What a version makes of a connection as it is now.
    async fn of(
        &self,
        c: &mut impl Connection,
        ready: &Plugin,
        kind: Kind,
        following: &Following,
    ) -> Result<Vec<Fault>, ChangeError> {
        let known = self.known.get(&(ready.digest.clone(), following.id));
        if let Some(known) = known.filter(|known| known.revision == following.revision) {
            return Ok(known.faults.clone());
        }
        let now = rows::follower(c, following.organization_id, following.id).await?;
        // Deleted meanwhile: it runs nothing.
        let Some(now) = now else { return Ok(Vec::new()) };
        match known.filter(|known| known.digest == digest(&now)) {
            Some(known) => Ok(known.faults.clone()),
            None if self.tries == 0 => faults(ready, kind, &now).await,
            None => Err(ChangeError::Moved),
        }
    }
}

/// Which of the connections that would run this version, if it were active, it does not fit.
///
/// # Errors
/// [`ChangeError::Moved`] where one was not looked at as it is now, but for the last try.
pub(super) async fn misfits(
    c: &mut impl Connection,
    (ready, examined): (&Plugin, &Examined),
    plugin: &rows::Plugin,
    version: &rows::Version,
) -> Result<Option<Misfits>, ChangeError> {
    let of_line = rows::line(c, plugin.id, &version.line).await?;
    // What runs nothing now cannot become worse.
    let runs = |follower: &Following| {
        let runs = if follower.plugin_line.is_some() { &of_line } else { &plugin.active_version };
        runs.clone().filter(|runs| *runs != version.version)
    };
    among(c, (ready, examined), plugin, (&version.line, &version.version), runs).await
}

/// Which of the connections that follow the line of one version another one does not fit.
///
/// # Errors
/// As [`misfits`].
pub(super) async fn misfits_of_line(
    c: &mut impl Connection,
    (ready, examined): (&Plugin, &Examined),
    plugin: &rows::Plugin,
    followed: &rows::Version,
    version: &rows::Version,
) -> Result<Option<Misfits>, ChangeError> {
    let runs = |follower: &Following| follower.plugin_line.as_ref().map(|_| followed.version.clone());
    among(c, (ready, examined), plugin, (&followed.line, &version.version), runs).await
}

/// Of the connections that follow a line, or whatever is active, those which a version does not fit; `runs` says what each
/// of them runs, nothing for those that do not matter.
async fn among(
    c: &mut impl Connection,
    (ready, examined): (&Plugin, &Examined),
    plugin: &rows::Plugin,
    (line, version): (&str, &str),
    runs: impl Fn(&Following) -> Option<String>,
) -> Result<Option<Misfits>, ChangeError> {
    let mut connections = Vec::new();
    let mut after = Uuid::nil();
    loop {
        let batch = rows::following_after(c, (plugin.kind, &plugin.name), line, after, FOLLOWING).await?;
        let Some(last) = batch.last() else { break };
        after = last.id;
        for follower in batch {
            let Some(runs) = runs(&follower) else { continue };
            let faults = examined.of(c, ready, plugin.kind, &follower).await?;
            if !faults.is_empty() {
                let Following { id, organization_id, .. } = follower;
                connections.push(Misfit { id, organization_id, runs, faults });
            }
        }
    }
    let found = !connections.is_empty();
    Ok(found.then(|| Misfits { kind: plugin.kind, version: version.to_owned(), connections }))
}

/// Lets them name the version that they run, so that they keep it.
///
/// # Errors
/// As the database says.
pub(super) async fn pin(tx: &mut Tx, clock: &Clock, misfits: &Misfits) -> Result<(), ChangeError> {
    for misfit in &misfits.connections {
        rows::pin(tx, misfit.organization_id, misfit.id, &misfit.runs, clock.now()).await?;
    }
    Ok(())
}
