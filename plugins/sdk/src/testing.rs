//! Unit tests of plugins, on your machine: answers of your own instead of the network, and what the plugin did.
//!
//! Everything here belongs to the current thread, as each Rust test does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;

use crate::http::{self, Response, Sent};
use crate::sink::{Event, Outcome};
use crate::{Call, Plugin};

type Answer = Box<dyn FnMut(&Sent) -> Result<Response, http::Error>>;

#[derive(Default)]
struct World {
    answer: Option<Answer>,
    requests: Vec<Sent>,
    progress: Vec<(Option<u8>, String)>,
    logged: Vec<(log::Level, String)>,
    secrets: BTreeMap<String, String>,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

/// Answers the plugin's requests until it is dropped.
pub struct FarSide(PhantomData<*const ()>);

/// Answers every request of this thread with `answer`, which sees it as the server would.
#[must_use = "requests fail again when this is dropped"]
pub fn answer(answer: impl FnMut(&Sent) -> Result<Response, http::Error> + 'static) -> FarSide {
    WORLD.with_borrow_mut(|world| {
        world.answer = Some(Box::new(answer));
        world.requests.clear();
    });
    FarSide(PhantomData)
}

impl FarSide {
    /// The requests so far.
    pub fn requests(&self) -> Vec<Sent> {
        WORLD.with_borrow(|world| world.requests.clone())
    }
}

impl Drop for FarSide {
    fn drop(&mut self) {
        WORLD.with_borrow_mut(|world| world.answer = None);
    }
}

/// A first call with this configuration.
///
/// # Panics
/// If the configuration doesn't fit.
#[expect(clippy::panic, reason = "this is for tests")]
pub fn call<P: Plugin>(config: &str) -> Call<P::Config> {
    crate::logging::start();
    Call {
        connection_id: "01920000-0000-7000-8000-000000000001".to_owned(),
        config: serde_json::from_str(config).unwrap_or_else(|error| panic!("the configuration doesn't fit: {error}")),
        idempotency_key: "the-same-every-time".to_owned(),
        attempt: 1,
    }
}

/// A successful event with this position in the chain.
pub fn event(sequence: u64) -> Event {
    Event {
        id: format!("01920000-0000-7000-8000-{sequence:012}"),
        sequence,
        occurred_at: "2026-11-02T10:00:00.000000Z".to_owned(),
        organization_id: "01920000-0000-7000-8000-00000000000a".to_owned(),
        actor: "user/01920000-0000-7000-8000-00000000000b".to_owned(),
        action: "agent.deploy".to_owned(),
        target: "agent/01920000-0000-7000-8000-00000000000c".to_owned(),
        outcome: Outcome::Success,
        details: r#"{"request_id":"r"}"#.to_owned(),
        hash: "0".repeat(64),
    }
}

/// Supplies a secret for [`Secret::reveal`](crate::Secret::reveal).
pub fn secret(name: &str, value: &str) {
    WORLD.with_borrow_mut(|world| world.secrets.insert(name.to_owned(), value.to_owned()));
}

/// Takes what was reported with [`progress`](crate::progress()) so far.
pub fn take_progress() -> Vec<(Option<u8>, String)> {
    WORLD.with_borrow_mut(|world| std::mem::take(&mut world.progress))
}

/// Takes the lines logged so far.
pub fn take_log() -> Vec<(log::Level, String)> {
    WORLD.with_borrow_mut(|world| std::mem::take(&mut world.logged))
}

pub(crate) fn progressed(percent: Option<u8>, message: &str) {
    WORLD.with_borrow_mut(|world| world.progress.push((percent, message.to_owned())));
}

pub(crate) fn logged(level: log::Level, message: &str) {
    WORLD.with_borrow_mut(|world| world.logged.push((level, message.to_owned())));
}

pub(crate) fn revealed(name: &str) -> Result<String, String> {
    WORLD.with_borrow(|world| world.secrets.get(name).cloned()).ok_or_else(|| "it is not supplied".to_owned())
}

pub(crate) fn send(request: &Sent) -> Result<Response, http::Error> {
    // Taken out while it runs, so that it may call what is in this module.
    let answer = WORLD.with_borrow_mut(|world| {
        world.requests.push(request.clone());
        world.answer.take()
    });
    let Some(mut answer) = answer else {
        return Err(http::Error::Connect("no `testing::answer` is in place".to_owned()));
    };
    let response = answer(request);
    WORLD.with_borrow_mut(|world| world.answer = Some(answer));
    response
}
