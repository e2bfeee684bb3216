//! How many rows an organization has, up to a bound: so that no tenant fills the tables that all share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;

use super::{Connection, StoreError};
use crate::{
    config::limits::ServerLimits,
    domain::{
        connection::Kind,
        id::{OrganizationId, UserId},
    },
    on,
};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// How many of each there may be.
#[derive(Clone)]
struct Bounds {
    users: i64,
    workspaces: i64,
    memberships: i64,
    agents: i64,
    connections: i64,
    waiting_jobs: i64,
}

/// How many there are; counts no further than `most`, so that the answer costs the same however many there are.
///
/// # Errors
/// As the database says.
async fn count(
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

/// How many rows an organization may add on this host before they are counted again: counting reads each of them, so whoever has many
/// and adds more would pay for all that are there each time.
///
/// An allowance is one part in 64 of the room that was counted, so each host but one goes beyond the bound by less than one part in 64
/// of it; and on PostgreSQL requests that count at the same moment do, as told at [`Allowances::room`].
#[derive(Clone)]
pub struct Allowances {
    bounds: Bounds,
    left: Cache<(OrganizationId, Counted), Arc<AtomicI64>>,
}

/// Of the room that was counted, one host takes this part.
const SHARE: i64 = 64;
/// How long other hosts may have added to what was counted.
const ALLOWANCE_TIME: Duration = Duration::from_secs(60);
/// Allowances that are kept; who has none is counted.
const ALLOWANCES: u64 = 10_000;

impl Allowances {
    /// None is taken yet.
    pub fn new(limits: &ServerLimits) -> Self {
        let bounds = Bounds {
            users: limits.users_per_organization,
            workspaces: limits.workspaces_per_organization,
            memberships: limits.memberships_per_user,
            agents: limits.agents_per_organization,
            connections: limits.connections_per_organization,
            waiting_jobs: limits.jobs_waiting_per_organization,
        };
        Self { bounds, left: Cache::builder().max_capacity(ALLOWANCES).time_to_live(ALLOWANCE_TIME).build() }
    }

    /// How many there may be.
    pub fn most(&self, what: Counted) -> i64 {
        match what {
            Counted::Users => self.bounds.users,
            Counted::Workspaces => self.bounds.workspaces,
            Counted::Memberships(_) => self.bounds.memberships,
            Counted::Agents => self.bounds.agents,
            Counted::Connections(_) => self.bounds.connections,
            Counted::WaitingJobs => self.bounds.waiting_jobs,
        }
    }

    /// Whether one more may be added, and takes it from the allowance. To be asked in the transaction that adds it. On PostgreSQL two
    /// at once may both be let in by it, and so at the most one for each connection to the database goes beyond; several hosts go
    /// beyond as told above. The bound is one of order, not of safety.
    ///
    /// # Errors
    /// As the database says.
    pub async fn room(
        &self,
        c: &mut impl Connection,
        organization: OrganizationId,
        what: Counted,
    ) -> Result<bool, StoreError> {
        let (key, most) = ((organization, what), self.most(what));
        if self.left.get(&key).is_some_and(|left| left.fetch_sub(1, Ordering::Relaxed) > 0) {
            return Ok(true);
        }
        let counted = count(c, organization, what, most).await?;
        match (most - counted - 1) / SHARE {
            left if left > 0 => self.left.insert(key, Arc::new(AtomicI64::new(left))),
            _ => self.left.invalidate(&key),
        }
        Ok(counted < most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        domain::tenancy::{Organization, Workspace},
        store::{fixture::Database, organizations, workspaces},
    };

    #[tokio::test]
    async fn hosts_that_count_now_and_then_go_hardly_beyond() {
        const MOST: i64 = 200;
        for (database, hosts) in Database::each().await.into_iter().zip([1, 4]) {
            let (store, clock) = (&database.store, Clock::system());
            let organization = Organization {
                id: clock.id(),
                name: "Acme".into(),
                policy_version_id: None,
                created_at: clock.now(),
                updated_at: clock.now(),
                revision: 1,
            };
            let mut tx = store.begin().await.unwrap();
            organizations::insert(&mut tx, &organization).await.unwrap();
            tx.commit().await.unwrap();
            let others = hosts - 1;
            let limits = ServerLimits {
                workspaces_per_organization: MOST,
                agents_per_organization: MOST,
                ..ServerLimits::default()
            };
            let hosts: Vec<_> = (0..hosts).map(|_| Allowances::new(&limits)).collect();
            let (mut added, mut refused) = (0, 0);
            for host in hosts.iter().cycle() {
                let mut tx = store.begin().await.unwrap();
                if !host.room(&mut tx, organization.id, Counted::Workspaces).await.unwrap() {
                    refused += 1;
                    if refused == hosts.len() {
                        break;
                    }
                    continue;
                }
                refused = 0;
                added += 1;
                let workspace = Workspace {
                    id: clock.id(),
                    organization_id: organization.id,
                    name: format!("workspace {added}"),
                    description: String::new(),
                    created_at: clock.now(),
                    updated_at: clock.now(),
                    revision: 1,
                };
                workspaces::insert(&mut tx, &workspace).await.unwrap();
                tx.commit().await.unwrap();
            }
            assert!((MOST..=MOST + others * MOST / SHARE).contains(&added), "{added}");
            let mut tx = store.begin().await.unwrap();
            let one = Allowances::new(&limits);
            assert!(one.room(&mut tx, organization.id, Counted::Agents).await.unwrap());
            let allowed = one.left.get(&(organization.id, Counted::Agents)).unwrap().load(Ordering::Relaxed);
            assert_eq!(allowed, 3, "so many more are not counted");
        }
    }
}
