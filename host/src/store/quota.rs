//! How many rows an organization has, up to a bound: so that no tenant fills the tables that all share.

use super::{Connection, StoreError};
use crate::{
    domain::{
        connection::Kind,
        id::{OrganizationId, UserId},
    },
    on,
};

/// What is counted.
#[derive(Debug, Clone, Copy)]
pub enum Counted {
    /// Users of the organization.
    Users,
    /// Its workspaces.
    Workspaces,
    /// Roles of one user.
    Memberships(UserId),
    /// Its agents.
    Agents,
    /// Its connections of one kind.
    Connections(Kind),
    /// Its jobs that wait for a worker.
    WaitingJobs,
}

/// How many there are; counts no further than `most`, so that the answer costs the same however many there are.
///
/// # Errors
/// As the database says.
pub async fn count(
    c: &mut impl Connection,
    organization: OrganizationId,
    what: Counted,
    most: i64,
) -> Result<i64, StoreError> {
    macro_rules! counted {
        ($from:literal) => {
            concat!("SELECT COUNT(*) FROM (SELECT 1 FROM ", $from, " LIMIT $2) AS counted")
        };
    }
    let sql = match what {
        Counted::Users => counted!("users WHERE organization_id = $1"),
        Counted::Workspaces => counted!("workspaces WHERE organization_id = $1"),
        Counted::Agents => counted!("agents WHERE organization_id = $1"),
        Counted::WaitingJobs => counted!("jobs WHERE organization_id = $1 AND state = 'queued'"),
        Counted::Memberships(user) => {
            let sql = counted!("memberships WHERE organization_id = $1 AND user_id = $3");
            return Ok(on!(c, |c| {
                sqlx::query_scalar(sql).bind(organization).bind(most).bind(user).fetch_one(c).await
            })?);
        }
        Counted::Connections(kind) => {
            let sql = counted!("connections WHERE organization_id = $1 AND kind = $3");
            return Ok(on!(c, |c| {
                sqlx::query_scalar(sql).bind(organization).bind(most).bind(kind).fetch_one(c).await
            })?);
        }
    };
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(organization).bind(most).fetch_one(c).await)?)
}
