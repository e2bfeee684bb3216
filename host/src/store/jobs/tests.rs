use chrono::TimeDelta;

use super::*;
use crate::{
    clock::Clock,
    domain::deployment::DeploymentState,
    jobs::fixture::{Fixture, Tenant},
};

const LEASE: TimeDelta = TimeDelta::seconds(30);
const EACH: i64 = 8;

async fn claim_at(fixture: &Fixture, owner: &str, now: DateTime<Utc>) -> Option<Claimed> {
    let mut tx = fixture.store.begin().await.unwrap();
    let claimed = claim(&mut tx, owner, now, now + LEASE, EACH).await.unwrap();
    tx.commit().await.unwrap();
    claimed
}

async fn queued(fixture: &Fixture, tenant: &Tenant) -> JobId {
    fixture.deployment(tenant, DeploymentState::Queued, JobKind::Deploy).await.1
}

/// Every write a worker makes, each in a transaction of its own: whether it was let through.
async fn writes(fixture: &Fixture, held: &Job, now: DateTime<Utc>) -> [bool; 4] {
    let mut passed = [false; 4];
    for (n, passed) in passed.iter_mut().enumerate() {
        // Rolled back: each sees what the one before it saw.
        let mut tx = fixture.store.begin().await.unwrap();
        let result = match n {
            0 => hold(&mut tx, held, now).await.map(drop),
            1 => renew(&mut tx, held, now + LEASE).await,
            2 => later(&mut tx, held, now, "again", true, now).await,
            _ => finish(&mut tx, held, JobState::Succeeded, None, now).await,
        };
        match result {
            Ok(()) => *passed = true,
            Err(StoreError::Stale) => {}
            Err(error) => panic!("{error}"),
        }
        tx.rollback().await.unwrap();
    }
    passed
}

#[tokio::test]
async fn two_workers_race_and_one_gets_the_job() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        let id = queued(&fixture, &tenant).await;
        let now = Clock::system().now();
        let owners: Vec<String> = (0..8).map(|n| format!("worker-{n}")).collect();
        let claims = owners.iter().map(|owner| claim_at(&fixture, owner, now));
        let won: Vec<Claimed> = futures::future::join_all(claims).await.into_iter().flatten().collect();
        assert_eq!(won.len(), 1);
        assert_eq!((won[0].job.id, won[0].job.attempts, won[0].job.fence), (id, 1, 1));
        assert_eq!(won[0].job.state, JobState::Running);
    }
}

#[tokio::test]
async fn a_job_waits_for_its_time() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        queued(&fixture, &tenant).await;
        let now = Clock::system().now();
        let held = claim_at(&fixture, "a", now).await.unwrap().job;
        let mut tx = fixture.store.begin().await.unwrap();
        later(&mut tx, &held, now + TimeDelta::seconds(10), "away", false, now).await.unwrap();
        tx.commit().await.unwrap();
        assert!(claim_at(&fixture, "a", now + TimeDelta::milliseconds(9_999)).await.is_none());
        let again = claim_at(&fixture, "a", now + TimeDelta::seconds(10)).await.unwrap().job;
        assert_eq!((again.attempts, again.last_error.as_deref()), (2, Some("away")));
    }
}

#[tokio::test]
async fn a_lease_that_ended_moves_the_fence_and_the_stalled_worker_can_write_nothing() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        queued(&fixture, &tenant).await;
        let now = Clock::system().now();
        let stalled = claim_at(&fixture, "a", now).await.unwrap().job;
        assert!(claim_at(&fixture, "b", now + LEASE - TimeDelta::microseconds(1)).await.is_none());
        assert_eq!(writes(&fixture, &stalled, now).await, [true; 4]);
        let successor = claim_at(&fixture, "b", now + LEASE).await.unwrap().job;
        assert_eq!((successor.id, successor.attempts, successor.fence), (stalled.id, 2, stalled.fence + 1));
        assert_eq!((stalled.uncertain, successor.uncertain), (false, true));
        assert_eq!(writes(&fixture, &stalled, now + LEASE).await, [false; 4]);
        assert_eq!(writes(&fixture, &successor, now + LEASE).await, [true; 4]);
    }
}

#[tokio::test]
async fn renewing_keeps_a_job() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        queued(&fixture, &tenant).await;
        let now = Clock::system().now();
        let held = claim_at(&fixture, "a", now).await.unwrap().job;
        let mut tx = fixture.store.begin().await.unwrap();
        renew(&mut tx, &held, now + LEASE * 2).await.unwrap();
        tx.commit().await.unwrap();
        assert!(claim_at(&fixture, "b", now + LEASE).await.is_none());
        assert!(claim_at(&fixture, "b", now + LEASE * 2).await.is_some());
    }
}

#[tokio::test]
async fn a_job_that_kills_every_worker_is_given_up() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        let id = queued(&fixture, &tenant).await;
        let mut now = Clock::system().now();
        let attempts = fixture.job(&tenant, id).await.max_attempts;
        for attempt in 1..=attempts {
            let claimed = claim_at(&fixture, "a", now).await.unwrap();
            assert_eq!((claimed.job.attempts, claimed.exhausted), (attempt, false));
            now += LEASE;
        }
        let last = claim_at(&fixture, "a", now).await.unwrap();
        assert_eq!((last.job.attempts, last.exhausted), (attempts, true));
        // Its host stops before it has given the job up: the next one does.
        let mut tx = fixture.store.begin().await.unwrap();
        assert_eq!(release(&mut tx, "a", now).await.unwrap(), 1);
        tx.commit().await.unwrap();
        let again = claim_at(&fixture, "b", now).await.unwrap();
        assert_eq!((again.job.attempts, again.exhausted), (attempts, true));
        // Somebody lets it begin again, with all attempts: one that is cut short is not counted.
        let mut tx = fixture.store.begin().await.unwrap();
        finish(&mut tx, &again.job, JobState::Failed, None, now).await.unwrap();
        retry(&mut tx, tenant.organization, id, now).await.unwrap().unwrap();
        tx.commit().await.unwrap();
        for _ in 0..2 {
            assert_eq!(claim_at(&fixture, "c", now).await.unwrap().job.attempts, 1);
            let mut tx = fixture.store.begin().await.unwrap();
            assert_eq!(release(&mut tx, "c", now).await.unwrap(), 1);
            tx.commit().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_stopping_worker_gives_back_what_it_holds_and_nothing_else() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        let (first, second) = (queued(&fixture, &tenant).await, queued(&fixture, &tenant).await);
        let now = Clock::system().now();
        let stopping = claim_at(&fixture, "a", now).await.unwrap().job;
        let other = claim_at(&fixture, "b", now).await.unwrap().job;
        assert_eq!((stopping.id, other.id), (first, second));
        let mut tx = fixture.store.begin().await.unwrap();
        assert_eq!(release(&mut tx, "a", now).await.unwrap(), 1);
        tx.commit().await.unwrap();
        assert_eq!(writes(&fixture, &stopping, now).await, [false; 4]);
        assert_eq!(writes(&fixture, &other, now).await, [true; 4]);
        let again = claim_at(&fixture, "c", now).await.unwrap().job;
        assert_eq!((again.id, again.attempts), (first, 1), "the attempt that was cut short is not counted");
    }
}

#[tokio::test]
async fn one_tenant_cannot_keep_the_workers_from_the_others() {
    for fixture in Fixture::each().await {
        let (busy, quiet) = (fixture.tenant().await, fixture.tenant().await);
        for _ in 0..=EACH {
            queued(&fixture, &busy).await;
        }
        let id = queued(&fixture, &quiet).await;
        let now = Clock::system().now();
        for _ in 0..EACH {
            let claimed = claim_at(&fixture, "a", now).await.unwrap();
            assert_eq!(claimed.job.organization_id, busy.organization);
        }
        assert_eq!(claim_at(&fixture, "a", now).await.unwrap().job.id, id);
        assert!(claim_at(&fixture, "a", now).await.is_none());
        let mut conn = fixture.store.read().await.unwrap();
        assert!(!due(&mut conn, now, EACH).await.unwrap(), "nobody asks for the lock to find nothing");
        assert!(due(&mut conn, now, EACH + 1).await.unwrap() && due(&mut conn, now + LEASE, EACH).await.unwrap());
        drop(conn);
        // What was abandoned is taken over all the same.
        assert!(claim_at(&fixture, "a", now + LEASE).await.is_some());
    }
}

/// On SQLite, where a claim keeps everybody else from writing: however many jobs there are that are over, it looks at none of them.
#[tokio::test]
async fn a_claim_goes_along_indexes() {
    let fixture = Fixture::sqlite().await;
    let tx = fixture.store.begin().await.unwrap();
    let Tx::Sqlite(mut open) = tx else { panic!("SQLite") };
    for (sql, numbers) in [(lease::DUE, 2), (lease::CANDIDATES.0, 1), (lease::CANDIDATES.1, 2)] {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let query = sqlx::query_as::<sqlx::Sqlite, (i64, i64, i64, String)>(explain).bind(Clock::system().now());
        let query = if numbers == 2 { query.bind(EACH) } else { query };
        let plan = query.fetch_all(open.connection()).await.unwrap();
        let lines = plan.iter().map(|line| line.3.as_str()).filter(|line| *line != "SCAN CONSTANT ROW");
        let looks: Vec<&str> = lines.filter(|line| line.starts_with("SCAN") || line.starts_with("SEARCH")).collect();
        assert!(!looks.is_empty(), "{plan:?}");
        for look in looks {
            let of_few = ["jobs_queued", "jobs_running", "jobs_leases"].iter().any(|index| look.contains(index));
            assert!(of_few, "{look} in {plan:?}");
        }
        let sorts = plan.iter().any(|line| line.3.contains("FOR ORDER BY"));
        assert!(!sorts, "{plan:?}");
    }
}

#[tokio::test]
async fn cancelling_ends_what_waits_and_tells_what_runs() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        let now = Clock::system().now() + TimeDelta::seconds(1);
        let called_off = async |id| {
            let mut tx = fixture.store.begin().await.unwrap();
            let job = cancel(&mut tx, tenant.organization, id, now).await.unwrap();
            tx.commit().await.unwrap();
            job
        };
        let waiting = queued(&fixture, &tenant).await;
        let job = called_off(waiting).await.unwrap();
        assert_eq!((job.state, job.finished_at), (JobState::Cancelled, Some(now)));
        assert!(called_off(waiting).await.is_none());

        queued(&fixture, &tenant).await;
        let running = claim_at(&fixture, "a", now).await.unwrap().job;
        let job = called_off(running.id).await.unwrap();
        assert_eq!((job.state, job.cancel_requested), (JobState::Running, true));
        assert!(hold(&mut fixture.store.begin().await.unwrap(), &running, now).await.unwrap().cancel_requested);

        // Where something may be left at the far side, it runs again, to clean up; otherwise it is over.
        for (uncertain, state) in [(true, JobState::Queued), (false, JobState::Cancelled)] {
            queued(&fixture, &tenant).await;
            let held = claim_at(&fixture, "a", now).await.unwrap().job;
            let mut tx = fixture.store.begin().await.unwrap();
            later(&mut tx, &held, now + TimeDelta::hours(1), "away", uncertain, now).await.unwrap();
            tx.commit().await.unwrap();
            let job = called_off(held.id).await.unwrap();
            assert_eq!((job.state, job.run_at, job.uncertain), (state, now, uncertain));
            if uncertain {
                let cleanup = claim_at(&fixture, "a", now).await.unwrap().job;
                assert_eq!((cleanup.id, cleanup.cancel_requested, cleanup.uncertain), (held.id, true, true));
            }
        }
    }
}

#[tokio::test]
async fn a_failed_job_begins_again_and_a_done_one_does_not() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        let id = queued(&fixture, &tenant).await;
        let now = Clock::system().now();
        let again = async || {
            let mut tx = fixture.store.begin().await.unwrap();
            let job = retry(&mut tx, tenant.organization, id, now).await.unwrap();
            tx.commit().await.unwrap();
            job
        };
        for end in [JobState::Failed, JobState::Succeeded] {
            let held = claim_at(&fixture, "a", now).await.unwrap().job;
            let mut tx = fixture.store.begin().await.unwrap();
            finish(&mut tx, &held, end, Some("x"), now).await.unwrap();
            tx.commit().await.unwrap();
            let job = again().await;
            match end {
                JobState::Failed => assert_eq!(job.map(|j| (j.state, j.attempts)), Some((JobState::Queued, 0))),
                _ => assert!(job.is_none()),
            }
        }
    }
}

#[tokio::test]
async fn a_job_of_a_kind_that_is_not_known_here_stays_for_a_host_that_knows_it() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        let (newer, own) = (queued(&fixture, &tenant).await, queued(&fixture, &tenant).await);
        let mut tx = fixture.store.begin().await.unwrap();
        let sql = "UPDATE jobs SET kind = 'deployment.scale' WHERE id = $1";
        on!(&mut tx, |c| sqlx::query(sql).bind(newer).execute(c).await.map(drop)).unwrap();
        tx.commit().await.unwrap();
        let now = Clock::system().now();
        let held = claim_at(&fixture, "a", now).await.unwrap().job;
        assert_eq!(held.id, own, "the older one is in nobody's way");
        assert!(claim_at(&fixture, "a", now).await.is_none());
        let mut tx = fixture.store.begin().await.unwrap();
        finish(&mut tx, &held, JobState::Succeeded, None, now).await.unwrap();
        assert!(!due(&mut tx, now, EACH).await.unwrap());
        assert_eq!(unknown(&mut tx).await.unwrap(), [("deployment.scale".to_owned(), 1)]);
        assert!(get(&mut tx, tenant.organization, newer).await.unwrap().is_none());
        assert!(lock(&mut tx, tenant.organization, newer).await.unwrap().is_none());
        assert!(show(&mut tx, tenant.organization, newer).await.unwrap().is_none());
        assert_eq!(list(&mut tx, tenant.organization, None, None, Uuid::nil(), 10).await.unwrap().len(), 1);
        // A host that knows it takes it, with all its attempts.
        let sql = "UPDATE jobs SET kind = 'deployment.deploy' WHERE id = $1 AND state = 'queued' AND attempts = 0";
        on!(&mut tx, |c| sqlx::query(sql).bind(newer).execute(c).await.map(drop)).unwrap();
        assert!(unknown(&mut tx).await.unwrap().is_empty());
        assert_eq!(claim(&mut tx, "b", now, now + LEASE, EACH).await.unwrap().unwrap().job.id, newer);
    }
}

#[tokio::test]
async fn another_tenant_s_job_is_not_there() {
    for fixture in Fixture::each().await {
        let (owner, other) = (fixture.tenant().await, fixture.tenant().await);
        let id = queued(&fixture, &owner).await;
        let now = Clock::system().now();
        let mut tx = fixture.store.begin().await.unwrap();
        assert!(get(&mut tx, other.organization, id).await.unwrap().is_none());
        assert!(show(&mut tx, other.organization, id).await.unwrap().is_none());
        assert!(cancel(&mut tx, other.organization, id, now).await.unwrap().is_none());
        assert!(retry(&mut tx, other.organization, id, now).await.unwrap().is_none());
        assert!(list(&mut tx, other.organization, None, None, Uuid::nil(), 10).await.unwrap().is_empty());
        assert_eq!(
            list(&mut tx, owner.organization, Some(JobState::Queued), None, Uuid::nil(), 10).await.unwrap().len(),
            1
        );
    }
}

#[tokio::test]
async fn a_job_that_cannot_be_read_is_set_aside_and_stops_no_other() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        let (bad, good) = (queued(&fixture, &tenant).await, queued(&fixture, &tenant).await);
        let mut tx = fixture.store.begin().await.unwrap();
        let sql = "UPDATE jobs SET payload = '{}' WHERE id = $1";
        on!(&mut tx, |c| sqlx::query(sql).bind(bad).execute(c).await.map(drop)).unwrap();
        tx.commit().await.unwrap();
        let now = Clock::system().now();
        assert!(claim_at(&fixture, "a", now).await.is_none());
        assert_eq!(claim_at(&fixture, "a", now).await.unwrap().job.id, good);
        let mut conn = fixture.store.read().await.unwrap();
        let sql = "SELECT state, last_error FROM jobs WHERE id = $1";
        let kept: (String, String) = on!(&mut conn, |c| sqlx::query_as(sql).bind(bad).fetch_one(c).await).unwrap();
        assert_eq!(kept, ("failed".to_owned(), "this version of the server cannot read the job".to_owned()));
    }
}

#[tokio::test]
async fn a_failed_job_stays_until_its_deployment_is_over() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        let (deployment, _) = fixture.deployment(&tenant, DeploymentState::Stopping, JobKind::Undeploy).await;
        let now = Clock::system().now();
        let held = claim_at(&fixture, "a", now).await.unwrap().job;
        let later = now + TimeDelta::days(999);
        let mut tx = fixture.store.begin().await.unwrap();
        finish(&mut tx, &held, JobState::Failed, Some("away"), now).await.unwrap();
        assert_eq!(prune(&mut tx, later, 10).await.unwrap(), 0, "somebody may have to repeat it");
        let sql = "UPDATE deployments SET finished_at = $2 WHERE id = $1";
        on!(&mut tx, |c| sqlx::query(sql).bind(deployment.id).bind(now).execute(c).await.map(drop)).unwrap();
        assert_eq!(prune(&mut tx, later, 10).await.unwrap(), 1);
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn old_jobs_are_removed_and_unfinished_ones_never() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        queued(&fixture, &tenant).await;
        let now = Clock::system().now();
        let held = claim_at(&fixture, "a", now).await.unwrap().job;
        let waiting = queued(&fixture, &tenant).await;
        let mut tx = fixture.store.begin().await.unwrap();
        finish(&mut tx, &held, JobState::Succeeded, None, now).await.unwrap();
        assert_eq!(prune(&mut tx, now, 10).await.unwrap(), 0);
        assert_eq!(prune(&mut tx, now + TimeDelta::days(999), 10).await.unwrap(), 1);
        assert!(get(&mut tx, tenant.organization, waiting).await.unwrap().is_some());
    }
}
