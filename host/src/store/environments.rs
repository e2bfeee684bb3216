//! Environments as an earlier version stored them, of all organizations.

use super::{Connection, StoreError, Tx};
use crate::{domain::id::OrganizationId, on};

/// What has an environment.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    /// Gateways.
    Gateways,
    /// Deployments.
    Deployments,
}

/// An environment as rows of one organization have it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Stored {
    /// Whose.
    pub organization_id: OrganizationId,
    /// As it is stored.
    pub environment: String,
}

/// White space of ASCII.
const BLANKS: &str = " \t\n\u{b}\u{c}\r";

macro_rules! unusual {
    ($table:literal) => {
        concat!(
            "SELECT DISTINCT organization_id, environment FROM ",
            $table,
            " WHERE (organization_id, environment) > ($1, $2)
                AND (octet_length(environment) <> length(environment) OR environment <> LOWER(TRIM(environment, $4))
                     OR environment LIKE '%  %')
              ORDER BY organization_id, environment LIMIT $3"
        )
    };
}

/// Environments after `after` that may be spelled in another way than they are now, each once: all but those in small ASCII
/// letters without white space around them and without two spaces together.
///
/// # Errors
/// As the database says.
pub async fn unusual(c: &mut impl Connection, of: Of, after: &Stored, limit: i64) -> Result<Vec<Stored>, StoreError> {
    let sql = match of {
        Of::Gateways => unusual!("connections"),
        Of::Deployments => unusual!("deployments"),
    };
    Ok(on!(c, |c| sqlx::query_as(sql)
        .bind(after.organization_id)
        .bind(&after.environment)
        .bind(limit)
        .bind(BLANKS)
        .fetch_all(c)
        .await)?)
}

// Hosts that start together take the locks in one order, and whoever waited finds nothing left to change.
macro_rules! respell {
    ($table:literal, $also:literal, $lock:literal) => {
        concat!(
            "UPDATE ",
            $table,
            " SET environment = $3",
            $also,
            " WHERE organization_id = $1 AND environment = $2 AND id IN
                (SELECT id FROM ",
            $table,
            " WHERE organization_id = $1 AND environment = $2 ORDER BY id LIMIT $4",
            $lock,
            ")"
        )
    };
}

/// Spells an environment anew in at most `limit` rows; returns in how many. A gateway's ETag changes with it.
///
/// # Errors
/// As the database says.
pub async fn respell(tx: &mut Tx, of: Of, stored: &Stored, spelled: &str, limit: i64) -> Result<u64, StoreError> {
    let sql = match (of, &*tx) {
        (Of::Gateways, Tx::Sqlite(_)) => respell!("connections", ", revision = revision + 1", ""),
        (Of::Gateways, Tx::Postgres(_)) => respell!("connections", ", revision = revision + 1", " FOR UPDATE"),
        (Of::Deployments, Tx::Sqlite(_)) => respell!("deployments", "", ""),
        (Of::Deployments, Tx::Postgres(_)) => respell!("deployments", "", " FOR UPDATE"),
    };
    let changed = on!(tx, |c| sqlx::query(sql)
        .bind(stored.organization_id)
        .bind(&stored.environment)
        .bind(spelled)
        .bind(limit)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(changed)
}
