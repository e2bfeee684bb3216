//! Whether the connections that would run another version can: those that follow what it takes the place of, of all
//! organizations. A schema may become stricter and a secret may be added within what semantic versions call compatible;
//! a connection that does not fit would fail at its next call, in another organization than that of whoever activates.
//!
//! Nothing can begin to follow the plugin meanwhile, nor change how it does: see [`rows::hold`].

use uuid::Uuid;

use super::{Plugin, install::ChangeError};
use crate::{
    clock::Clock,
    domain::{connection::Kind, fault::Fault, id::OrganizationId},
    store::{
        Connection, StoreError, Tx,
        plugins::{self as rows, Follower},
    },
};

/// Connections read at once.
const BATCH: i64 = 200;
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

/// Which of the connections that would run this version, if it were active, it does not fit.
///
/// # Errors
/// As the database says.
pub(super) async fn misfits(
    c: &mut impl Connection,
    ready: &Plugin,
    plugin: &rows::Plugin,
    version: &rows::Version,
) -> Result<Option<Misfits>, StoreError> {
    let of_line = rows::line(c, plugin.id, &version.line).await?;
    // What runs nothing now cannot become worse.
    let runs = |follower: &Follower| {
        let runs = if follower.plugin_line.is_some() { &of_line } else { &plugin.active_version };
        runs.clone().filter(|runs| *runs != version.version)
    };
    among(c, ready, plugin, (&version.line, &version.version), runs).await
}

/// Which of the connections that follow the line of one version another one does not fit.
///
/// # Errors
/// As the database says.
pub(super) async fn misfits_of_line(
    c: &mut impl Connection,
    ready: &Plugin,
    plugin: &rows::Plugin,
    followed: &rows::Version,
    version: &rows::Version,
) -> Result<Option<Misfits>, StoreError> {
    let runs = |follower: &Follower| follower.plugin_line.as_ref().map(|_| followed.version.clone());
    among(c, ready, plugin, (&followed.line, &version.version), runs).await
}

/// Of the connections that follow a line, or whatever is active, those which a version does not fit; `runs` says what each
/// of them runs, nothing for those that do not matter.
async fn among(
    c: &mut impl Connection,
    ready: &Plugin,
    plugin: &rows::Plugin,
    (line, version): (&str, &str),
    runs: impl Fn(&Follower) -> Option<String>,
) -> Result<Option<Misfits>, StoreError> {
    let mut connections = Vec::new();
    let mut after = Uuid::nil();
    loop {
        let batch = rows::followers_after(c, plugin, line, after, BATCH).await?;
        let Some(last) = batch.last() else { break };
        after = last.id;
        for follower in batch {
            let Some(runs) = runs(&follower) else { continue };
            let Follower { id, organization_id, config, secret_names, .. } = follower;
            let mut faults = ready.manifest.misfits(plugin.kind, &config.0, &secret_names.0).await;
            faults.truncate(FAULTS);
            if !faults.is_empty() {
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
