//! Whether the connections that would run another version can: those that follow what it takes the place of, of all
//! organizations. A schema may become stricter and a secret may be added within what semantic versions call compatible;
//! a connection that does not fit would fail at its next call, in another organization than that of whoever activates.
//!
//! That is looked at before the transaction of the change ([`Examined`]). Within it nothing can begin to follow the plugin, nor change
//! how it does (see [`rows::hold`]); a connection that did so in between is looked at once more, before another try.

use std::collections::HashMap;

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
/// How often connections that changed meanwhile are looked at again.
pub const TRIES: u32 = 5;
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
#[derive(Default)]
pub struct Examined(HashMap<(String, Uuid), (i64, Vec<Fault>)>);

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
            for Follower { id, revision, config, secret_names, .. } in batch {
                let known = self.0.entry((ready.digest.clone(), id)).or_insert((0, Vec::new()));
                if known.0 != revision {
                    let mut faults = ready.manifest.misfits(plugin.0, &config.0, &secret_names.0).await?;
                    faults.truncate(FAULTS);
                    *known = (revision, faults);
                }
            }
        }
    }

    /// What a version makes of a connection as it is now.
    fn of(&self, ready: &Plugin, follower: &Following) -> Result<&[Fault], ChangeError> {
        match self.0.get(&(ready.digest.clone(), follower.id)) {
            Some((revision, faults)) if *revision == follower.revision => Ok(faults),
            _ => Err(ChangeError::Moved),
        }
    }
}

/// Which of the connections that would run this version, if it were active, it does not fit.
///
/// # Errors
/// [`ChangeError::Moved`] where one was not looked at as it is now.
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
            let faults = examined.of(ready, &follower)?.to_vec();
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
