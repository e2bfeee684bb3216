//! What a plugin made of a situation, and what the kit thinks of it.

use std::time::Duration;

use super::situation::{ASKED_WAIT, DATED_WAIT, Situation};
use crate::plugins::PluginError;

/// What a call came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It succeeded; the text says with what.
    Done(String),
    /// It failed, as the server would take it.
    Failed(PluginError),
    /// It was still at it when the kit's patience ended.
    Waiting(Duration),
}

impl Outcome {
    /// In one word.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Done(_) => "ok",
            Outcome::Failed(error) => error.outcome().as_str(),
            Outcome::Waiting(_) => "waiting",
        }
    }

    /// Whether the server would try again by itself; `None` where there is nothing to try again.
    pub fn retried(&self) -> Option<bool> {
        match self {
            Outcome::Done(_) => None,
            Outcome::Failed(error) => Some(error.retryable()),
            Outcome::Waiting(_) => Some(true),
        }
    }

    /// The wait before the next attempt, where the plugin passed one on.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Outcome::Failed(PluginError::Unavailable { retry_after, .. }) => *retry_after,
            _ => None,
        }
    }

    /// Its message.
    pub fn message(&self) -> String {
        match self {
            Outcome::Done(said) => said.clone(),
            Outcome::Failed(error) => error.to_string(),
            Outcome::Waiting(patience) => {
                format!("still at it after {} s; the server would end the call at its limit", patience.as_secs())
            }
        }
    }
}

/// What the kit thinks of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Works, and could be better: says how.
    Note(&'static str),
    /// Clearly wrong: says why.
    Wrong(&'static str),
    /// The call asked for nothing of the far side, so the situation did not come about.
    Untouched,
}

/// One call, for judging.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Which export.
    pub export: &'a str,
    /// In which situation.
    pub situation: Situation,
    /// What it came to.
    pub outcome: &'a Outcome,
    /// Requests and connections that reached the far side, or were refused on the way.
    pub contacts: usize,
    /// `deliver`: how many events it says are stored. `identify`: whether it says the address is verified.
    pub detail: Option<Detail>,
    /// Only TCP was spoken: such a sink may not see what became of what it wrote.
    pub only_tcp: bool,
}

/// What a successful call gave, as far as the kit judges it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Events stored.
    Stored(u32),
    /// Whether the e-mail address is vouched for.
    Verified(bool),
    /// `status`: nothing is there.
    Gone,
    /// `status`: it will not become active.
    FailedState,
    /// A second deployment gave another registration.
    Twice,
}

/// Judges one call.
pub fn judge(seen: &Seen<'_>) -> Verdict {
    match seen.outcome {
        Outcome::Failed(PluginError::Fault(_)) => {
            return Verdict::Wrong(
                "the call ended in a trap or at a limit: an error in the plugin's own words says more",
            );
        }
        Outcome::Failed(PluginError::Internal(_)) => {
            return Verdict::Wrong("what the far side does is no defect of the plugin: `internal` hides the cause");
        }
        _ => {}
    }
    let done = matches!(seen.outcome, Outcome::Done(_));
    let untouched = seen.contacts == 0 && done;
    let rejected = matches!(seen.outcome, Outcome::Failed(PluginError::Rejected(_)));
    match seen.situation {
        Situation::Good if seen.detail == Some(Detail::Twice) => {
            Verdict::Wrong("the same deployment again must give the same registration")
        }
        Situation::Good | Situation::ClockFast => good(seen, done),
        Situation::Unverified if seen.detail == Some(Detail::Verified(true)) => {
            Verdict::Wrong("an address counts as verified only where the provider says so")
        }
        Situation::NoSubject if done => {
            Verdict::Note("it takes the subject from elsewhere: it must never be reassigned")
        }
        Situation::NoSubject | Situation::Unverified | Situation::OddClaims => match seen.outcome.retried() {
            Some(true) => Verdict::Wrong("the same sign-in would bring the same claims: not worth another attempt"),
            _ => Verdict::Good,
        },
        Situation::FileBlocked if done => Verdict::Wrong("it says that it worked, and nothing can have been written"),
        Situation::FileBlocked if rejected => {
            Verdict::Wrong("an operator can mend a folder: `config` or `unavailable`, so that nothing is given up")
        }
        Situation::FileBlocked => Verdict::Good,
        _ if untouched => Verdict::Untouched,
        Situation::NotFound => not_found(seen, done),
        Situation::Unauthorized | Situation::PrivateRedirect => lasting(seen, done),
        Situation::TooMany | Situation::ClockOff => asked_to_wait(seen, done),
        Situation::ServerError | Situation::NoConnection => passing(seen, done),
        Situation::Cut if done && seen.only_tcp => {
            Verdict::Note("plain TCP does not tell it that the far side went away")
        }
        Situation::Cut if done => Verdict::Note("it takes an answer that broke off for a good one"),
        Situation::Cut => passing(seen, done),
        Situation::Drip => match seen.outcome {
            Outcome::Waiting(_) if seen.only_tcp => Verdict::Good,
            Outcome::Waiting(_) => Verdict::Wrong("it waits on although the server gave the answer up"),
            _ if done => Verdict::Good,
            _ => passing(seen, done),
        },
        Situation::Huge | Situation::Malformed => match seen.outcome {
            Outcome::Waiting(_) => hang(),
            Outcome::Done(_) if matches!(seen.export, "status" | "identify") => Verdict::Note(
                "what it says cannot come from this answer: it does not read it, or makes up what is missing",
            ),
            _ => Verdict::Good,
        },
    }
}

fn hang() -> Verdict {
    Verdict::Wrong("it hangs although the far side has answered")
}

fn good(seen: &Seen<'_>, done: bool) -> Verdict {
    match seen.outcome {
        Outcome::Waiting(_) => hang(),
        _ if !done && seen.situation == Situation::ClockFast => {
            Verdict::Wrong("a clock that is off makes it fail: compare times with the far side's own `Date`")
        }
        _ if !done && seen.export == "identify" => Verdict::Wrong(
            "a good sign-in is not good enough: if the provider's differ, give its `claims` and `answers` with --config",
        ),
        _ if !done => Verdict::Wrong(
            "good answers are not good enough: if the far side answers otherwise, give its `answers` with --config",
        ),
        _ if seen.detail == Some(Detail::Stored(0)) => Verdict::Wrong("it stored nothing although all is well"),
        _ => Verdict::Good,
    }
}

/// What only a person can change.
fn lasting(seen: &Seen<'_>, done: bool) -> Verdict {
    match seen.outcome.retried() {
        _ if matches!(seen.outcome, Outcome::Waiting(_)) => hang(),
        Some(true) => Verdict::Wrong("it will not pass by itself: `config`, so that an operator sees it"),
        _ if done && seen.detail == Some(Detail::Stored(0)) => {
            Verdict::Note("storing none is retried without a reason: `config` would say it")
        }
        _ if done && seen.detail == Some(Detail::FailedState) => Verdict::Good,
        _ if done => Verdict::Wrong("it says that it worked, and it did not"),
        _ if seen.outcome.word() == "rejected" => {
            Verdict::Note("`config` would tell an operator that it is theirs to change")
        }
        _ => Verdict::Good,
    }
}

/// What passes by itself.
fn passing(seen: &Seen<'_>, done: bool) -> Verdict {
    match seen.outcome {
        Outcome::Waiting(_) => hang(),
        _ if done && seen.detail == Some(Detail::Stored(0)) => {
            Verdict::Note("storing none is retried without a reason: `unavailable` would say it")
        }
        _ if done => Verdict::Wrong("it says that it worked, and it did not"),
        Outcome::Failed(error) if !error.retryable() => {
            Verdict::Wrong("it may pass by itself: `unavailable`, so that it is tried again")
        }
        _ => Verdict::Good,
    }
}

fn asked_to_wait(seen: &Seen<'_>, done: bool) -> Verdict {
    let asked = if seen.situation == Situation::ClockOff { DATED_WAIT } else { ASKED_WAIT };
    match passing(seen, done) {
        Verdict::Good => match seen.outcome.wait() {
            None => Verdict::Note("it does not pass on how long the far side asks to wait"),
            Some(wait) if wait.abs_diff(asked) > Duration::from_secs(5) => Verdict::Wrong(
                "it passes on another wait than the far side asks for: compare with the answer's own `Date`",
            ),
            Some(_) => Verdict::Good,
        },
        verdict => verdict,
    }
}

fn not_found(seen: &Seen<'_>, done: bool) -> Verdict {
    match (seen.export, seen.detail) {
        ("undeploy", _) if !done => Verdict::Wrong("removing what is already gone succeeds"),
        ("undeploy", _) | ("status", Some(Detail::Gone | Detail::FailedState)) => Verdict::Good,
        ("status", _) if done => Verdict::Wrong("what the target does not know is `gone`"),
        ("status", _) => Verdict::Note("what the target does not know is `gone`, not an error"),
        (_, Some(Detail::Stored(0))) => Verdict::Note("storing none is retried without a reason"),
        _ if done => Verdict::Note("it takes 404 for an answer as good as any"),
        _ => match seen.outcome.retried() {
            Some(true) => Verdict::Note("a wrong address seldom mends itself: `config` would show it to an operator"),
            _ => Verdict::Good,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(export: &str, situation: Situation, outcome: &Outcome, detail: Option<Detail>) -> Verdict {
        judge(&Seen { export, situation, outcome, contacts: 1, detail, only_tcp: false })
    }

    fn unavailable(seconds: Option<u64>) -> Outcome {
        Outcome::Failed(PluginError::Unavailable {
            message: "away".into(),
            retry_after: seconds.map(Duration::from_secs),
        })
    }

    #[test]
    fn what_is_clearly_wrong_is_called_so() {
        let config = Outcome::Failed(PluginError::Config("no".into()));
        let fault = Outcome::Failed(PluginError::Fault("trap".into()));
        let done = Outcome::Done(String::new());
        let wrong = |export, situation, outcome: &Outcome, detail| {
            assert!(
                matches!(verdict(export, situation, outcome, detail), Verdict::Wrong(_)),
                "{export} {situation:?} {outcome:?}"
            );
        };
        wrong("check", Situation::Unauthorized, &unavailable(None), None);
        wrong("check", Situation::Unauthorized, &done, None);
        wrong("deliver", Situation::ServerError, &config, None);
        wrong("deliver", Situation::ServerError, &done, Some(Detail::Stored(3)));
        wrong("deliver", Situation::TooMany, &unavailable(Some(7200)), None);
        wrong("deliver", Situation::Cut, &config, None);
        wrong("deliver", Situation::Drip, &config, None);
        wrong("deliver", Situation::Drip, &Outcome::Waiting(Duration::from_secs(10)), None);
        wrong("deliver", Situation::ClockOff, &unavailable(Some(0)), None);
        wrong("undeploy", Situation::NotFound, &config, None);
        wrong("deploy", Situation::Good, &done, Some(Detail::Twice));
        wrong("identify", Situation::Unverified, &done, Some(Detail::Verified(true)));
        let rejected = Outcome::Failed(PluginError::Rejected("no".into()));
        wrong("deliver", Situation::FileBlocked, &rejected, None);
        wrong("deliver", Situation::FileBlocked, &done, Some(Detail::Stored(3)));
        for situation in Situation::ALL {
            wrong("check", situation, &fault, None);
        }
    }

    #[test]
    fn what_is_as_it_should_be_is_called_so() {
        let config = Outcome::Failed(PluginError::Config("no".into()));
        for (situation, outcome) in [
            (Situation::Unauthorized, &config),
            (Situation::PrivateRedirect, &config),
            (Situation::NotFound, &config),
            (Situation::TooMany, &unavailable(Some(7))),
            (Situation::ClockOff, &unavailable(Some(30))),
            (Situation::ServerError, &unavailable(None)),
            (Situation::Cut, &unavailable(None)),
            (Situation::Drip, &unavailable(None)),
            (Situation::FileBlocked, &unavailable(None)),
            (Situation::Good, &Outcome::Done("yes".into())),
        ] {
            assert_eq!(verdict("check", situation, outcome, None), Verdict::Good, "{situation:?}");
        }
    }
}
