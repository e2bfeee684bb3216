//! Delivers the audit trail to sinks, beside the requests and never in their way.
//!
//! Each sink has a place in its organization's chain (`audit_deliveries`). Whoever holds the sink's lease sends what comes
//! after that place, in order and in batches, and moves the place on by what the far side says it has stored: each event
//! arrives at least once, under the same id. A failure is tried again, later and later, and never skipped.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{
        Notify, Semaphore,
        broadcast::{Receiver, error::RecvError},
    },
    time::Instant,
};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::{
    app::App,
    bus::Hint,
    domain::{
        audit::Event,
        connection::Kind,
        id::{AuditSinkId, OrganizationId},
        job::backoff,
    },
    lease::{Lease, Lost, while_held},
    plugins::{self, Attempt, PluginError},
    store::{self, StoreError, delivery::Cursor},
};

/// How often it is looked for work without a hint.
const POLL: Duration = Duration::from_secs(1);
/// How long events are gathered before they are sent.
const GATHER: Duration = Duration::from_millis(50);
/// How often the lag is measured.
const MEASURE: Duration = Duration::from_secs(5);
/// Events of one batch at the most.
const BATCH_EVENTS: i64 = 100;
/// Bytes of one batch at the most, unless a single event is larger.
const BATCH_BYTES: usize = 512 * 1024;
/// Batches in a row before another sink gets its turn.
const BATCHES: usize = 20;
/// How long a turn lasts, but for the batch that is under way.
const TURN: Duration = Duration::from_secs(10);
/// The longest pause after failures, unless the far side asks for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long a stopping host tries to give its sinks back: a database that hangs must not hold it up.
const RELEASE: Duration = Duration::from_secs(4);
/// Characters of an error that are kept.
const ERROR_LENGTH: usize = 2000;

/// Starts delivering on `app.tasks`; ends after `app.stopping`.
pub fn start(app: &App) {
    app.tasks.spawn(dispatch(app.clone()));
    app.tasks.spawn(measure(app.clone()));
}

async fn dispatch(app: App) {
    let owner: Arc<str> = format!("dispatcher-{}", app.clock.id::<Uuid>()).into();
    let slots = Arc::new(Semaphore::new(app.config.limits.audit_deliveries));
    let deliveries = TaskTracker::new();
    let ended = Arc::new(Notify::new());
    let mut hints = app.bus.subscribe();
    while !app.stopping.is_cancelled() {
        let round = round(&app, &owner, &slots, &deliveries, &ended);
        if let Some(Err(error)) = app.stopping.run_until_cancelled(round).await {
            tracing::warn!(%error, "could not look for audit events to deliver; trying again");
            app.stopping.run_until_cancelled(tokio::time::sleep(POLL)).await;
        }
        app.stopping.run_until_cancelled(wait(&mut hints, &ended)).await;
    }
    deliveries.close();
    let drain = Duration::from_secs(app.config.limits.audit_stop_seconds);
    if tokio::time::timeout(drain, deliveries.wait()).await.is_err() {
        tracing::info!("stopping while a sink still takes its batch; it will be sent again");
    }
    let released = async {
        let mut tx = app.store.begin().await?;
        store::delivery::release_all(&mut tx, &owner).await?;
        tx.commit().await
    };
    match tokio::time::timeout(RELEASE, released).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "could not give back audit sinks; another host takes them over when their leases end");
        }
        Err(_) => {
            tracing::warn!(
                "could not give back audit sinks in time; another host takes them over when their leases end"
            );
        }
    }
}

/// Begins a delivery to each sink that waits for one, as far as there is room.
async fn round(
    app: &App,
    owner: &Arc<str>,
    slots: &Arc<Semaphore>,
    deliveries: &TaskTracker,
    ended: &Arc<Notify>,
) -> Result<(), StoreError> {
    let room = i64::try_from(slots.available_permits()).unwrap_or(0);
    if room == 0 {
        return Ok(());
    }
    let each = app.config.limits.audit_deliveries_per_organization;
    let due = store::delivery::due(&mut app.store.read().await?, app.clock.now(), room, each).await?;
    for (organization, sink) in due {
        let Ok(permit) = slots.clone().try_acquire_owned() else { break };
        let (app, owner, ended) = (app.clone(), owner.clone(), ended.clone());
        deliveries.spawn(async move {
            match deliver(&app, &owner, organization, sink).await {
                Ok(()) => {}
                Err(StoreError::Stale) => {
                    tracing::info!(%sink, "an audit sink is not this host's any more: it was deleted, its lease has ended, or another host has it")
                }
                Err(error) => tracing::warn!(%sink, %error, "delivering audit events was cut short by the database"),
            }
            drop(permit);
            // There may be more, for this sink or another that found no room: look again.
            ended.notify_one();
        });
    }
    Ok(())
}

/// Returns when there may be something to deliver: after a hint or the end of a delivery, or after [`POLL`]; never sooner
/// than after [`GATHER`], so that what is recorded together is sent together.
async fn wait(hints: &mut Receiver<Hint>, ended: &Notify) {
    tokio::time::sleep(GATHER).await;
    let hint = async {
        loop {
            match hints.recv().await {
                Ok(Hint::Audit { .. } | Hint::Resync) | Err(RecvError::Lagged(_)) => return,
                Ok(_) => {}
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        () = hint => {}
        () = ended.notified() => {}
        () = tokio::time::sleep(POLL) => {}
    }
}

/// Sends batch after batch to one sink, while it holds the sink's lease.
async fn deliver(app: &App, owner: &str, organization: OrganizationId, sink: AuditSinkId) -> Result<(), StoreError> {
    let (mut asked, now) = (Instant::now(), app.clock.now());
    let mut tx = app.store.begin().await?;
    let claimed =
        store::delivery::claim(&mut tx, organization, sink, owner, now, now + app.config.limits.job_lease()).await?;
    let Some(mut cursor) = claimed else { return Ok(()) };
    tx.commit().await?;
    let begun = Instant::now();
    for _ in 0..BATCHES {
        if app.stopping.is_cancelled() || begun.elapsed() > TURN {
            break;
        }
        let batch = batch(app, &cursor).await?;
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { break };
        let (first, last) = (first.sequence, last.sequence);
        match while_renewing(app, &cursor, asked, Box::pin(send(app, &cursor, (first, last), &batch))).await? {
            Ok(stored) => {
                // A far side that claims more than it was sent is not believed.
                let sequence = (cursor.sequence + i64::from(stored)).min(last);
                let stored = sequence.abs_diff(cursor.sequence);
                let now = app.clock.now();
                asked = Instant::now();
                let mut tx = app.store.begin().await?;
                store::delivery::delivered(&mut tx, &cursor, sequence, now, now + app.config.limits.job_lease())
                    .await?;
                tx.commit().await?;
                (cursor.sequence, cursor.attempt) = (sequence, 0);
                metrics::counter!("kaizen_audit_delivered_events_total").increment(stored);
            }
            Err(error) => return put_off(app, &cursor, &naming(error, &batch)).await,
        }
    }
    let mut tx = app.store.begin().await?;
    store::delivery::release(&mut tx, &cursor).await?;
    tx.commit().await
}

/// The next events, as many as make a batch; at least one, if there is one.
async fn batch(app: &App, cursor: &Cursor) -> Result<Vec<Event>, StoreError> {
    let mut conn = app.store.read().await?;
    let mut events = store::audit::after(&mut conn, cursor.organization_id, cursor.sequence, BATCH_EVENTS).await?;
    let keep = fitting(&events);
    events.truncate(keep);
    Ok(events)
}

fn fitting(events: &[Event]) -> usize {
    let mut bytes = 0;
    let within = events.iter().take_while(|event| {
        // Ids, times, hash and punctuation of one event as JSON.
        bytes += event.details.len() + event.actor.len() + event.action.len() + event.target.len() + 320;
        bytes <= BATCH_BYTES
    });
    within.count().max(1).min(events.len())
}

/// Hands a batch to the sink's plugin, with the configuration and secrets as they are now.
///
/// The idempotency key names both ends of the batch: what is tried again may have grown meanwhile, and a far side that knew
/// the key from before would drop the events that are new to it.
async fn send(app: &App, cursor: &Cursor, (first, last): (i64, i64), batch: &[Event]) -> Result<u32, PluginError> {
    let internal =
        |error: StoreError| PluginError::Unavailable { message: format!("the database: {error}"), retry_after: None };
    let mut conn = app.store.read().await.map_err(internal)?;
    let found = store::connections::get(&mut conn, cursor.organization_id, Kind::AuditSink, cursor.sink_id.0).await;
    let found = found.map_err(internal)?;
    drop(conn);
    let connection = found.ok_or_else(|| PluginError::Config("the sink was removed".to_owned()))?;
    if !connection.active {
        return Err(PluginError::Config("the sink is switched off (`active` is false)".to_owned()));
    }
    let binding = plugins::bind(&app.secrets, &connection).map_err(|error| PluginError::Config(error.to_string()))?;
    let attempt = Attempt {
        idempotency_key: format!("{}:{first}-{last}", cursor.sink_id),
        attempt: u32::try_from(cursor.attempt + 1).unwrap_or(u32::MAX),
    };
    match app.plugins.deliver(&binding, &attempt, batch).await? {
        0 => {
            Err(PluginError::Unavailable { message: "the sink took none of the events".to_owned(), retry_after: None })
        }
        stored => Ok(stored),
    }
}

/// Awaits `call` while the sink's lease is held; it was last asked for at `asked`.
async fn while_renewing<T>(
    app: &App,
    cursor: &Cursor,
    asked: Instant,
    call: impl Future<Output = T>,
) -> Result<T, StoreError> {
    let length = app.config.limits.job_lease();
    let lease = Lease { of: format!("audit sink {}", cursor.sink_id), length, until: asked + length };
    let (app, cursor) = (app.clone(), cursor.clone());
    let renew = move || {
        let (app, cursor) = (app.clone(), cursor.clone());
        async move {
            let mut tx = app.store.begin().await?;
            store::delivery::renew(&mut tx, &cursor, app.clock.now() + length).await?;
            tx.commit().await
        }
    };
    while_held(lease, renew, call).await.map_err(|Lost| StoreError::Stale)
}

/// A refusal of events says which ones, by id and sequence, whatever the plugin says: with them somebody finds what to mend. Those
/// before the first one are stored, and never sent again.
fn naming(error: PluginError, batch: &[Event]) -> PluginError {
    let (PluginError::Rejected(why), Some(first), Some(last)) = (&error, batch.first(), batch.last()) else {
        return error;
    };
    if batch.iter().any(|event| why.contains(&event.id.to_string())) {
        return error;
    }
    let which = if first.sequence == last.sequence {
        format!("event {} (sequence {})", first.id, first.sequence)
    } else {
        format!(
            "one of the events {} (sequence {}) to {} (sequence {})",
            first.id, first.sequence, last.id, last.sequence
        )
    };
    PluginError::Rejected(format!("{which}: {why}"))
}

/// Gives the sink back after a failure, to be tried again after a pause.
async fn put_off(app: &App, cursor: &Cursor, error: &PluginError) -> Result<(), StoreError> {
    let asked = match error {
        PluginError::Unavailable { retry_after, .. } => *retry_after,
        PluginError::Postponed { after, .. } => return postpone(app, cursor, *after).await,
        _ => None,
    };
    let failures = u32::try_from(cursor.attempt + 1).unwrap_or(u32::MAX);
    let pause = backoff(failures, asked, LONGEST_PAUSE, u64::from_be_bytes(app.clock.bytes()));
    let message: String = error.to_string().chars().take(ERROR_LENGTH).collect();
    tracing::warn!(sink = %cursor.sink_id, failures, error = message, ?pause, "delivering audit events failed");
    metrics::counter!("kaizen_audit_delivery_failures_total").increment(1);
    let mut tx = app.store.begin().await?;
    store::delivery::failed(&mut tx, cursor, &message, app.clock.now() + pause).await?;
    tx.commit().await
}

/// Gives the sink back where the call did not begin: no failure of the sink, so what the last one said stays.
async fn postpone(app: &App, cursor: &Cursor, after: Duration) -> Result<(), StoreError> {
    let pause = backoff(1, Some(after), LONGEST_PAUSE, u64::from_be_bytes(app.clock.bytes()));
    let mut tx = app.store.begin().await?;
    store::delivery::postponed(&mut tx, cursor, app.clock.now() + pause).await?;
    tx.commit().await
}

/// Tells how far the sinks are behind, by plugin: their number is the operator's, not the tenants'. The value is of the whole
/// database, so every host that works exports the same: a dashboard takes the largest, not the sum.
async fn measure(app: App) {
    let mut seen = BTreeSet::new();
    while app.stopping.run_until_cancelled(tokio::time::sleep(MEASURE)).await.is_some() {
        let lag = async { store::delivery::lag(&mut app.store.read().await?).await };
        let lag = match lag.await {
            Ok(lag) => lag,
            Err(error) => {
                tracing::debug!(%error, "could not measure the lag of audit delivery");
                continue;
            }
        };
        for (plugin, events) in values(&mut seen, lag) {
            metrics::gauge!("kaizen_audit_delivery_lag_events", "plugin" => plugin).set(events as f64);
        }
    }
}

/// What the gauges are set to, each once: a scrape in between sees the last measurement, never a sink that seems to have recovered.
/// A plugin that was `seen` and has no sink any more is not behind.
fn values(seen: &mut BTreeSet<String>, mut values: Vec<(String, i64)>) -> Vec<(String, i64)> {
    let gone: Vec<_> = seen.iter().filter(|plugin| !values.iter().any(|(now, _)| now == *plugin)).cloned().collect();
    values.extend(gone.into_iter().map(|plugin| (plugin, 0)));
    seen.extend(values.iter().map(|(plugin, _)| plugin.clone()));
    values
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::{
        domain::{audit::Outcome, id::AuditEventId},
        jobs::fixture::{Fixture, eventually},
        on,
    };

    #[test]
    fn the_document_says_how_long_an_error_is() {
        let schema = serde_json::to_value(<store::delivery::Delivery as utoipa::PartialSchema>::schema()).unwrap();
        assert_eq!(schema["properties"]["last_error"]["maxLength"], serde_json::json!(ERROR_LENGTH));
    }

    #[tokio::test]
    async fn a_sink_is_kept_for_as_long_as_its_batch_takes_and_let_go_where_another_has_it() {
        for fixture in Fixture::each().await {
            let app = fixture.app().await;
            let tenant = fixture.tenant().await;
            let sink = fixture.sink(&tenant).await;
            let until = app.clock.now() + app.config.limits.job_lease();
            let soon = app.clock.now() + chrono::TimeDelta::seconds(1);
            let mut tx = app.store.begin().await.unwrap();
            let claimed = store::delivery::claim(&mut tx, tenant.organization, sink, "d", soon, until).await.unwrap();
            tx.commit().await.unwrap();
            let cursor = claimed.unwrap();
            let call = eventually("the lease is renewed", || async {
                let sql = "SELECT COUNT(*) FROM audit_deliveries WHERE lease_until > $1";
                let mut conn = fixture.store.read().await.unwrap();
                on!(&mut conn, |c| sqlx::query_scalar::<_, i64>(sql).bind(until).fetch_one(c).await).unwrap() == 1
            });
            while_renewing(&app, &cursor, Instant::now(), call).await.unwrap();
            let mut tx = app.store.begin().await.unwrap();
            store::delivery::release_all(&mut tx, "d").await.unwrap();
            tx.commit().await.unwrap();
            let endless = std::future::pending::<()>();
            let lost = while_renewing(&app, &cursor, Instant::now(), endless).await;
            assert!(matches!(lost, Err(StoreError::Stale)));
        }
    }

    fn event(details: usize) -> Event {
        Event {
            id: AuditEventId(Uuid::nil()),
            organization_id: OrganizationId(Uuid::nil()),
            sequence: 1,
            occurred_at: DateTime::UNIX_EPOCH,
            actor: String::new(),
            action: String::new(),
            target: String::new(),
            outcome: Outcome::Success,
            details: "x".repeat(details),
            hash: String::new(),
        }
    }

    #[test]
    fn a_refusal_names_events_by_id_and_sequence() {
        let mut events = vec![event(1), event(1)];
        events[1].id = AuditEventId(Uuid::from_u128(2));
        events[1].sequence = 2;
        let named = |why: &str, batch: &[Event]| naming(PluginError::Rejected(why.to_owned()), batch).to_string();
        let one = named("too long", &events[1..]);
        assert!(one.contains("00000000-0000-0000-0000-000000000002 (sequence 2): too long"), "{one}");
        let some = named("too long", &events);
        assert!(some.contains("(sequence 1) to 00000000-0000-0000-0000-000000000002 (sequence 2)"), "{some}");
        let own = format!("event {} is bad", events[0].id);
        assert!(named(&own, &events).ends_with(&own), "the plugin names it");
        let away = PluginError::Unavailable { message: "busy".to_owned(), retry_after: None };
        assert_eq!(naming(away, &events).to_string(), "busy");
    }

    #[test]
    fn the_lag_of_each_plugin_is_set_once_and_never_to_zero_in_between() {
        let mut seen = BTreeSet::new();
        let lag = |of: &[(&str, i64)]| of.iter().map(|(plugin, events)| ((*plugin).to_owned(), *events)).collect();
        let set = |seen: &mut BTreeSet<String>, of: &[(&str, i64)]| {
            let mut values: Vec<_> = values(seen, lag(of));
            values.sort();
            values
        };
        assert_eq!(set(&mut seen, &[("file", 3), ("webhook", 5)]), lag(&[("file", 3), ("webhook", 5)]));
        assert_eq!(set(&mut seen, &[("file", 4), ("webhook", 6)]), lag(&[("file", 4), ("webhook", 6)]));
        assert_eq!(set(&mut seen, &[("webhook", 7)]), lag(&[("file", 0), ("webhook", 7)]), "its last sink was removed");
        assert_eq!(set(&mut seen, &[("file", 1)]), lag(&[("file", 1), ("webhook", 0)]));
    }

    #[test]
    fn a_batch_stays_under_its_size_and_is_never_empty() {
        assert_eq!(fitting(&[]), 0);
        assert_eq!(fitting(&[event(10), event(10)]), 2);
        assert_eq!(fitting(&[event(BATCH_BYTES - 1000), event(10), event(1000)]), 2);
        assert_eq!(fitting(&[event(BATCH_BYTES * 2), event(10)]), 1);
    }
}
