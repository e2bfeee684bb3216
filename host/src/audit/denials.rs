//! Denials that repeat: counted, so that nobody grows the audit trail by asking for what they may not.
//!
//! The first denial of one person, action and target is recorded before it is answered; where that fails, or the request is given
//! up meanwhile, it is counted as a further one. Further ones within
//! `denial_window_seconds` are counted on this host and become one event when that time is over: with how many they were,
//! since when and until when. A person with more targets than `denials_per_person`, and an organization with more than
//! `denials_per_organization`, has further ones counted by action, under `agent/*` and `user/*`. So a window adds at most
//! that many events to a chain, and one for each action and kind of target.
//!
//! A host that is asked to stop writes down what it has counted, and what came since once its last request has ended. One that
//! dies, or whose database takes nothing until then, loses the counts of the last window, and first denials that it was recording
//! or could not record; the metric `kaizen_denials_total` counts them all. One whose request was given up while the database was
//! storing it may be told of twice.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Record;
use crate::{
    app::App,
    bus::{Bus, Hint},
    clock::{self, Clock},
    config::limits::ServerLimits,
    domain::{audit::Outcome, id::OrganizationId},
    request_id,
    store::{Store, StoreError},
};

/// One denial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Denial {
    /// Whose trail.
    pub organization: OrganizationId,
    /// `user/{id}`.
    pub actor: String,
    /// The action that was denied.
    pub action: &'static str,
    /// The kind of the target, e.g. `agent`.
    pub kind: &'static str,
    /// `agent/{id}`.
    pub target: String,
}

impl Denial {
    /// The same, of whichever target of its kind.
    fn of_any_target(&self) -> Self {
        Self { target: format!("{}/*", self.kind), ..self.clone() }
    }

    /// The same, of whoever and whichever target.
    fn of_anybody(&self) -> Self {
        Self { actor: "user/*".to_owned(), ..self.of_any_target() }
    }
}

/// What has come since the last event about it.
#[derive(Debug, Clone)]
struct Fold {
    /// When its window began.
    begun: DateTime<Utc>,
    /// When the first of those that are counted came.
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    repeated: u64,
    /// Of the last one: why, and in which request.
    details: Value,
    /// Counts among the places of its person and organization.
    placed: bool,
    /// The first one is being recorded: where that fails, it is counted here.
    recording: bool,
}

#[derive(Default)]
struct Folds {
    by_denial: HashMap<Denial, Fold>,
    persons: HashMap<(OrganizationId, String), usize>,
    organizations: HashMap<OrganizationId, usize>,
}

/// The denials of this host that are counted. Cheap to clone.
#[derive(Clone)]
pub struct Denials {
    folds: Arc<Mutex<Folds>>,
    window: TimeDelta,
    per_person: usize,
    per_organization: usize,
}

impl Denials {
    /// None yet.
    pub fn new(limits: &ServerLimits) -> Self {
        let window = i64::try_from(limits.denial_window_seconds).unwrap_or(i64::MAX);
        Self {
            folds: Arc::default(),
            window: TimeDelta::try_seconds(window).unwrap_or(TimeDelta::MAX),
            per_person: limits.denials_per_person,
            per_organization: limits.denials_per_organization,
        }
    }

    /// Counts so many denials, at least one, that repeat one which was recorded. Returns under what another one has to be recorded
    /// now, if they do not, and counts the others as its repeats; how recording it ends is for [`Denials::end_recording`].
    fn count(&self, denial: &Denial, details: &Value, number: u64, now: DateTime<Utc>) -> Option<Denial> {
        let mut folds = self.folds.lock();
        let person = (denial.organization, denial.actor.clone());
        let of_person = folds.persons.get(&person).copied().unwrap_or_default();
        let of_organization = folds.organizations.get(&denial.organization).copied().unwrap_or_default();
        for (key, placed, fits) in [
            (denial.clone(), true, of_person < self.per_person && of_organization < self.per_organization),
            (denial.of_any_target(), false, of_organization < self.per_organization),
            (denial.of_anybody(), false, true),
        ] {
            if let Some(fold) = folds.by_denial.get_mut(&key) {
                if fold.repeated == 0 {
                    fold.since = now;
                }
                (fold.repeated, fold.until, fold.details) = (fold.repeated + number, now, details.clone());
                return None;
            }
            if fits {
                if placed {
                    *folds.persons.entry(person.clone()).or_default() += 1;
                }
                *folds.organizations.entry(denial.organization).or_default() += 1;
                let (begun, since, until, details) = (now, now, now, details.clone());
                let repeated = number.saturating_sub(1);
                let fold = Fold { begun, since, until, repeated, details, placed, recording: true };
                folds.by_denial.insert(key.clone(), fold);
                return Some(key);
            }
        }
        Some(denial.clone())
    }

    /// The first one, which came at `since`, was recorded, or could not be and is counted.
    fn end_recording(&self, key: &Denial, recorded: bool, since: DateTime<Utc>) {
        if let Some(fold) = self.folds.lock().by_denial.get_mut(key) {
            fold.recording = false;
        }
        if !recorded {
            self.not_recorded(key, 1, since);
        }
    }

    /// So many, the first of which came at `since`, were to be recorded and could not be: they are counted instead.
    fn not_recorded(&self, key: &Denial, repeated: u64, since: DateTime<Utc>) {
        if let Some(fold) = self.folds.lock().by_denial.get_mut(key) {
            fold.repeated += repeated;
            fold.since = fold.since.min(since);
        }
    }

    /// What was counted in windows that are over, or in all; begins new windows for it, and ends those without any.
    fn due(&self, now: DateTime<Utc>, all: bool) -> Vec<(Denial, Fold)> {
        let mut folds = self.folds.lock();
        let over = |fold: &Fold| all || now - fold.begun >= self.window;
        let mut due = Vec::new();
        let mut ended = Vec::new();
        for (denial, fold) in folds.by_denial.iter_mut().filter(|(_, fold)| over(fold)) {
            if fold.repeated == 0 && !fold.recording {
                ended.push((denial.clone(), fold.placed));
            } else if fold.repeated > 0 {
                due.push((denial.clone(), fold.clone()));
                (fold.begun, fold.since, fold.repeated) = (now, now, 0);
            }
        }
        for (denial, placed) in ended {
            folds.by_denial.remove(&denial);
            leave(&mut folds.organizations, denial.organization);
            if placed {
                leave(&mut folds.persons, (denial.organization, denial.actor));
            }
        }
        due
    }
}

/// Gives back a place.
fn leave<K: std::hash::Hash + Eq>(places: &mut HashMap<K, usize>, key: K) {
    if let Some(taken) = places.get_mut(&key) {
        *taken -= 1;
        if *taken == 0 {
            places.remove(&key);
        }
    }
}

/// What denials are recorded with.
#[derive(Clone, Copy)]
pub struct Trail<'a> {
    /// The database.
    pub store: &'a Store,
    /// Time and randomness.
    pub clock: &'a Clock,
    /// Who waits for audit events.
    pub bus: &'a Bus,
}

impl Denials {
    /// Records a denial, which came so many times, before it is answered, unless it repeats one that was. All are counted before
    /// anything is waited for.
    ///
    /// # Errors
    /// As the database says.
    pub async fn record(
        &self,
        trail: Trail<'_>,
        denial: Denial,
        details: Value,
        number: u64,
    ) -> Result<(), StoreError> {
        let (mut details, now) = (shortened(details), trail.clock.now());
        // Repeats are written down after their requests were answered.
        request_id::put_into(&mut details);
        let Some(key) = self.count(&denial, &details, number, now) else { return Ok(()) };
        // Whoever asked may go away while it is written.
        let mut recorded = scopeguard::guard(false, |recorded| self.end_recording(&key, recorded, now));
        write(trail, &denial, details).await?;
        *recorded = true;
        Ok(())
    }

    /// Counts a denial, which came so many times, that cannot be recorded now: it is written down when its window is over.
    pub fn record_later(&self, clock: &Clock, denial: &Denial, details: Value, number: u64) {
        let (mut details, now) = (shortened(details), clock.now());
        request_id::put_into(&mut details);
        if let Some(key) = self.count(denial, &details, number, now) {
            self.end_recording(&key, false, now);
        }
    }

    /// Writes down what was counted in windows that are over, or in all.
    async fn write_counted(&self, trail: Trail<'_>, all: bool) {
        let mut due = self.due(trail.clock.now(), all).into_iter();
        for (denial, fold) in due.by_ref() {
            let mut details = fold.details;
            if let Some(details) = details.as_object_mut() {
                details.insert("repeated".to_owned(), json!(fold.repeated));
                details.insert("since".to_owned(), json!(clock::rfc3339(fold.since)));
                details.insert("until".to_owned(), json!(clock::rfc3339(fold.until)));
            }
            if let Err(error) = write(trail, &denial, details).await {
                tracing::warn!(%error, "counted denials were not recorded yet");
                self.not_recorded(&denial, fold.repeated, fold.since);
                break;
            }
        }
        // The others would find the same database.
        due.for_each(|(denial, fold)| self.not_recorded(&denial, fold.repeated, fold.since));
    }
}

fn trail(app: &App) -> Trail<'_> {
    Trail { store: &app.store, clock: &app.clock, bus: &app.bus }
}

/// As [`Denials::record`].
///
/// # Errors
/// As the database says.
pub async fn record(app: &App, denial: Denial, details: Value) -> Result<(), StoreError> {
    app.denials.record(trail(app), denial, details, 1).await
}

/// Characters of a text, and items of a list, that the details of a denial have at the most. A tenant may describe a policy in
/// 256 KiB, and have 2,000 of them decide; the answer has them all.
const TEXT_CHARACTERS: usize = 500;
const LIST_ITEMS: usize = 10;

/// Details that are small however much the policies say.
fn shortened(details: Value) -> Value {
    match details {
        Value::String(text) if text.chars().nth(TEXT_CHARACTERS).is_some() => {
            text.chars().take(TEXT_CHARACTERS).chain(['…']).collect::<String>().into()
        }
        Value::Array(items) => items.into_iter().take(LIST_ITEMS).map(shortened).collect(),
        Value::Object(members) => members.into_iter().map(|(name, value)| (name, shortened(value))).collect(),
        value => value,
    }
}

async fn write(Trail { store, clock, bus }: Trail<'_>, denial: &Denial, details: Value) -> Result<(), StoreError> {
    let organization_id = denial.organization;
    let event = Record {
        organization_id,
        actor: denial.actor.clone(),
        action: denial.action,
        target: denial.target.clone(),
        outcome: Outcome::Denied,
        details,
    };
    let mut tx = store.begin().await?;
    super::record(&mut tx, clock, event).await?;
    tx.commit().await?;
    bus.publish(Hint::Audit { organization: organization_id });
    Ok(())
}

/// How often this host looks for windows that are over.
const LOOK: Duration = Duration::from_secs(1);

/// Writes down what is counted, on `app.tasks`; all of it upon `app.stopping`.
pub fn start(app: &App) {
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        while app.stopping.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            app.denials.write_counted(trail(&app), false).await;
        }
        app.denials.write_counted(trail(&app), true).await;
    });
}

/// Writes down what was counted since `app.stopping`, once nobody is denied anything any more.
pub async fn finish(app: &App) {
    app.denials.write_counted(trail(app), true).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        on,
        request_id::RequestIds,
        store::{audit, fixture::Database},
    };

    fn denials(per_person: usize, per_organization: usize) -> Denials {
        let limits = ServerLimits {
            denial_window_seconds: 60,
            denials_per_person: per_person,
            denials_per_organization: per_organization,
            ..ServerLimits::default()
        };
        Denials::new(&limits)
    }

    fn denial(organization: u128, actor: usize, target: usize) -> Denial {
        Denial {
            organization: OrganizationId(uuid::Uuid::from_u128(organization)),
            actor: format!("user/{actor}"),
            action: "agent.update",
            kind: "agent",
            target: format!("agent/{target}"),
        }
    }

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn counted(due: Vec<(Denial, Fold)>) -> u64 {
        due.iter().map(|(_, fold)| fold.repeated).sum()
    }

    #[test]
    fn the_first_is_recorded_and_the_rest_of_its_window_are_one() {
        let (denials, one) = (denials(20, 500), denial(1, 1, 1));
        assert_eq!(denials.count(&one, &json!({ "n": 1 }), 1, at(0)), Some(one.clone()));
        denials.end_recording(&one, true, at(0));
        for n in 2..=1000 {
            assert_eq!(denials.count(&one, &json!({ "n": n }), 1, at(n / 20)), None);
        }
        assert!(denials.due(at(59), false).is_empty());
        let due = denials.due(at(60), false);
        let [(key, fold)] = due.as_slice() else { panic!("{due:?}") };
        assert_eq!((key, fold.repeated, fold.since, fold.until), (&one, 999, at(0), at(50)));
        assert_eq!(fold.details, json!({ "n": 1000 }));
        // While it goes on, one event a window; then it is forgotten, and begins anew.
        assert_eq!(denials.count(&one, &json!({}), 1, at(70)), None);
        assert_eq!(counted(denials.due(at(120), false)), 1);
        assert!(denials.due(at(180), false).is_empty());
        assert!(denials.folds.lock().by_denial.is_empty() && denials.folds.lock().organizations.is_empty());
        assert_eq!(denials.count(&one, &json!({}), 1, at(200)), Some(one));
    }

    #[test]
    fn many_targets_and_many_people_are_bounded_and_none_is_lost() {
        let denials = denials(5, 50);
        let mut recorded = 0;
        for actor in 0..100 {
            for target in 0..100 {
                if let Some(key) = denials.count(&denial(1, actor, target), &json!({}), 1, at(0)) {
                    denials.end_recording(&key, true, at(0));
                    recorded += 1;
                }
            }
        }
        assert!(recorded <= 51, "{recorded}");
        // Another organization's do not take its places.
        assert_eq!(denials.count(&denial(2, 1, 1), &json!({}), 1, at(0)), Some(denial(2, 1, 1)));
        denials.end_recording(&denial(2, 1, 1), true, at(0));
        let due = denials.due(at(60), false);
        assert!(due.len() <= 51, "{}", due.len());
        assert_eq!(recorded + counted(due), 10_000);
        drop(denials.due(at(120), false));
        let folds = denials.folds.lock();
        assert!(folds.by_denial.is_empty() && folds.persons.is_empty() && folds.organizations.is_empty());
    }

    #[test]
    fn what_could_not_be_recorded_is_counted() {
        let (denials, one) = (denials(20, 500), denial(1, 1, 1));
        let key = denials.count(&one, &json!({}), 1, at(0)).unwrap();
        denials.end_recording(&key, false, at(0));
        assert_eq!(denials.count(&one, &json!({}), 1, at(50)), None);
        let due = denials.due(at(60), false);
        assert_eq!(
            due.iter().map(|(_, fold)| (fold.repeated, fold.since, fold.until)).collect::<Vec<_>>(),
            [(2, at(0), at(50))]
        );
        // Neither could they be when the window was over: the next event tells of them, from the first one on.
        due.iter().for_each(|(key, fold)| denials.not_recorded(key, fold.repeated, fold.since));
        assert_eq!(denials.count(&one, &json!({}), 1, at(70)), None);
        assert!(denials.due(at(100), false).is_empty(), "once a window");
        let due = denials.due(at(120), false);
        assert_eq!(
            due.iter().map(|(_, fold)| (fold.repeated, fold.since, fold.until)).collect::<Vec<_>>(),
            [(3, at(0), at(70))]
        );
    }

    #[test]
    fn many_at_once_are_all_counted_however_the_first_one_ends() {
        let (denials, one) = (denials(20, 500), denial(1, 1, 1));
        let key = denials.count(&one, &json!({}), 64, at(0)).unwrap();
        denials.end_recording(&key, true, at(0));
        assert_eq!(denials.count(&one, &json!({}), 6, at(1)), None);
        assert_eq!(counted(denials.due(at(60), false)), 69);
        drop(denials.due(at(120), false));
        let clock = Clock::fixed(at(130), 7);
        denials.record_later(&clock, &one, json!({}), 3);
        denials.record_later(&clock, &one, json!({}), 4);
        assert_eq!(counted(denials.due(at(190), false)), 7);
    }

    #[tokio::test]
    async fn one_whose_request_is_given_up_is_counted() {
        let database = Database::sqlite().await;
        let (denials, one) = (denials(20, 500), denial(1, 1, 1));
        // Nothing is written for as long as it is open.
        let held = database.store.begin().await.unwrap();
        let request = tokio::spawn({
            let (denials, one, store) = (denials.clone(), one.clone(), database.store.clone());
            async move {
                let (clock, bus) = (Clock::fixed(at(0), 7), Bus::local());
                denials.record(Trail { store: &store, clock: &clock, bus: &bus }, one, json!({}), 1).await
            }
        });
        while denials.folds.lock().by_denial.is_empty() {
            tokio::task::yield_now().await;
        }
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        assert_eq!(counted(denials.due(at(60), false)), 1);
        drop(held);
    }

    #[tokio::test]
    async fn repeats_name_the_request_of_the_last_one() {
        let database = Database::sqlite().await;
        let (denials, one) = (denials(20, 500), denial(1, 1, 1));
        assert!(denials.count(&one, &json!({}), 1, at(0)).is_some());
        let (clock, bus) = (Clock::fixed(at(1), 7), Bus::local());
        let trail = Trail { store: &database.store, clock: &clock, bus: &bus };
        let ids = RequestIds { id: "r2".to_owned(), client_id: Some("mine".to_owned()) };
        ids.scope(denials.record(trail, one, json!({ "decision": {} }), 1)).await.unwrap();
        let due = denials.due(at(60), false);
        let [(_, fold)] = due.as_slice() else { panic!("{due:?}") };
        assert_eq!(fold.details, json!({ "decision": {}, "request_id": "r2", "client_request_id": "mine" }));
    }

    #[test]
    fn what_is_kept_of_a_denial_is_small() {
        let policy = json!({ "id": "p", "description": "d".repeat(200_000) });
        let details =
            json!({ "request_id": "r", "decision": { "reason": "forbidden", "policies": vec![policy; 2000] } });
        let kept = shortened(details);
        assert!(kept.to_string().len() < 10_000, "{}", kept.to_string().len());
        assert_eq!((&kept["request_id"], &kept["decision"]["reason"]), (&json!("r"), &json!("forbidden")));
    }

    #[test]
    fn a_window_does_not_end_while_its_first_denial_is_being_recorded() {
        let (denials, one) = (denials(20, 500), denial(1, 1, 1));
        let key = denials.count(&one, &json!({}), 1, at(0)).unwrap();
        assert!(denials.due(at(60), false).is_empty() && denials.due(at(61), true).is_empty());
        assert_eq!(denials.count(&one, &json!({}), 1, at(70)), None);
        assert_eq!(counted(denials.due(at(121), false)), 1, "what repeats it does not wait");
        assert!(denials.due(at(200), false).is_empty());
        denials.end_recording(&key, false, at(0));
        let due = denials.due(at(300), false);
        assert_eq!(due.iter().map(|(_, fold)| (fold.repeated, fold.since)).collect::<Vec<_>>(), [(1, at(0))]);
        drop(denials.due(at(400), false));
        assert!(denials.folds.lock().by_denial.is_empty() && denials.folds.lock().organizations.is_empty());
    }

    #[tokio::test]
    async fn what_could_not_be_recorded_is_in_the_trail_once_the_database_takes_it() {
        let database = Database::sqlite().await;
        let (denials, clock, bus) = (denials(20, 500), Clock::fixed(at(0), 7), Bus::local());
        let trail = Trail { store: &database.store, clock: &clock, bus: &bus };
        let one = denial(1, 1, 1);
        // There is no such chain yet: what is written fails.
        assert!(denials.record(trail, one.clone(), json!({}), 5).await.is_err());
        denials.write_counted(trail, true).await;
        let mut tx = database.store.begin().await.unwrap();
        let sql = "INSERT INTO organizations (id, name, created_at, updated_at) VALUES ($1, 'o', $2, $2)";
        on!(&mut tx, |c| sqlx::query(sql).bind(one.organization).bind(at(0)).execute(c).await.map(drop)).unwrap();
        audit::begin_chain(&mut tx, one.organization).await.unwrap();
        tx.commit().await.unwrap();
        denials.write_counted(trail, true).await;
        let mut conn = database.store.read().await.unwrap();
        let events = audit::after(&mut conn, one.organization, 0, 10).await.unwrap();
        assert_eq!(events.len(), 1);
        assert!(events[0].details.contains(r#""repeated":5"#), "{}", events[0].details);
    }
}
