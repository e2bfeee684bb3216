//! `kaizen audit`: the trail, straight from the database.

use std::io::{BufWriter, Write};

use anyhow::{Context, bail};
use clap::Subcommand;
use uuid::Uuid;

use super::print;
use crate::{
    app,
    audit::{export, verify},
    config::Config,
    domain::id::OrganizationId,
    store::{self, Store},
};

/// Verify or export the audit trail
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Compute every hash again: one line of JSON for each organization; ends with 1 if a chain does not hold
    Verify {
        /// Only this organization's
        #[arg(long, value_name = "ID")]
        organization: Option<Uuid>,
    },
    /// Write the trail as JSON lines
    Export {
        /// Only this organization's
        #[arg(long, value_name = "ID")]
        organization: Option<Uuid>,
    },
}

impl AuditCommand {
    /// Runs it to its end. Reads only: the database is not migrated.
    ///
    /// # Errors
    /// One line: a chain that does not hold, an organization that is not there, a database that is away.
    pub async fn run(self, config: &Config) -> anyhow::Result<()> {
        let store = app::connect(config).await?;
        match self {
            Self::Verify { organization } => verify_all(&store, organization).await,
            Self::Export { organization } => export_all(&store, organization).await,
        }
    }
}

async fn chains(store: &Store, only: Option<Uuid>) -> anyhow::Result<Vec<OrganizationId>> {
    let chains = store::audit::chains(&mut store.read().await?)
        .await
        .context("cannot read the audit trail (a new database? `kaizen migrate` makes its tables)")?;
    match only.map(OrganizationId) {
        None => Ok(chains),
        Some(one) if chains.contains(&one) => Ok(vec![one]),
        Some(one) => bail!("--organization: there is no organization {one}"),
    }
}

async fn verify_all(store: &Store, only: Option<Uuid>) -> anyhow::Result<()> {
    let mut broken = 0;
    for organization in chains(store, only).await? {
        let Some(report) = verify::verify(store, organization).await? else { continue };
        broken += usize::from(!report.valid);
        let mut line = serde_json::json!({ "organization_id": organization });
        if let (Some(line), serde_json::Value::Object(report)) = (line.as_object_mut(), serde_json::to_value(&report)?)
        {
            line.extend(report);
        }
        print(&line.to_string())?;
    }
    match broken {
        0 => Ok(()),
        1 => bail!("the audit trail of one organization does not hold: see `first_fault`"),
        many => bail!("the audit trails of {many} organizations do not hold: see `first_fault`"),
    }
}

async fn export_all(store: &Store, only: Option<Uuid>) -> anyhow::Result<()> {
    let mut out = BufWriter::new(std::io::stdout());
    for organization in chains(store, only).await? {
        let mut after = 0;
        while let Some((last, lines)) = export::lines(store, organization, after).await? {
            out.write_all(&lines)?;
            after = last;
        }
    }
    out.flush()?;
    Ok(())
}
