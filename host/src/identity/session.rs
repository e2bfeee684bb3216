//! Sessions: one for each sign-in. An access token, a refresh token and the cookie all belong to one, and end with it.
//!
//! A refresh token is exchanged for the next one (RFC 9700, section 4.14.2). Whoever presents one that was exchanged
//! before either lost the answer a moment ago, shares it with another tab, or stole it: for ten seconds they are given
//! the same successor again, after that the session ends. The successor is derived from the token and a stored salt, so
//! that it can be given again although it is stored nowhere.
//!
//! All refresh tokens of a session begin with the same random half, their family, whose hash is kept with the session. So one that was
//! exchanged need not be kept to be known again: what is of a session's family and not stored was exchanged before, or made up by
//! somebody who has one that was.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::{Identity, failures::Visit, secret::Opaque, token};
use crate::{
    audit::{self, Record},
    clock::Clock,
    domain::{
        audit::Outcome,
        id::{OrganizationId, SessionId, UserId},
    },
    store::{
        Store, StoreError, Tx,
        sessions::{self, Named, NewSession},
    },
};

/// A session ends after this long, however busy.
pub const LIFETIME: TimeDelta = TimeDelta::days(30);
/// And after this long without use.
pub const IDLE: TimeDelta = TimeDelta::days(14);
/// Written down as seen at most this often.
pub const COARSE: TimeDelta = TimeDelta::minutes(10);
/// How long an exchanged refresh token still gives its successor.
const GRACE: TimeDelta = TimeDelta::seconds(10);
/// How long one is kept: longer than [`GRACE`], as the clocks of hosts differ.
const USED_KEPT: TimeDelta = TimeDelta::minutes(1);
/// How many are forgotten with one exchange.
const FORGOTTEN: i64 = 20;
/// How long ago a session must have ended to be forgotten with the next sign-in: whoever exchanged a token of it meanwhile is done.
const ENDED_KEPT: TimeDelta = TimeDelta::minutes(1);
/// What refresh tokens begin with, so that scanners for leaked secrets know them.
pub const REFRESH_PREFIX: &str = "kzr_";
/// Bytes of a user agent that are kept.
const USER_AGENT: usize = 200;

/// How somebody proved who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By password.
    Password,
    /// At an identity provider.
    Sso,
}

impl Method {
    /// As stored and audited.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Password => "password",
            Method::Sso => "sso",
        }
    }
}

/// What a sign-in hands out, once.
pub struct SignedIn {
    /// In which organization.
    pub organization_id: OrganizationId,
    /// Who.
    pub user_id: UserId,
    /// The session.
    pub session_id: SessionId,
    /// A JWT.
    pub access_token: SecretString,
    /// Seconds.
    pub expires_in: i64,
    /// Opaque.
    pub refresh_token: SecretString,
    /// The cookie's value; a refresh leaves the cookie as it is.
    pub cookie: Option<SecretString>,
    /// Whether other sessions of the user were ended, because they have as many as one may.
    pub ended_others: bool,
}

/// A session that was begun in a transaction, to be handed out once that has committed.
pub struct Begun {
    organization_id: OrganizationId,
    user_id: UserId,
    /// The session.
    pub session_id: SessionId,
    refresh: Opaque,
    cookie: Opaque,
    ended_others: bool,
}

/// What came of a refresh token.
pub enum Refreshed {
    /// It was good.
    Tokens(SignedIn),
    /// It is none of ours, has ended, or its user may not sign in.
    Refused,
    /// Too many of its session's were exchanged; how long to wait.
    Limited(Duration),
    /// It was exchanged long before: the session has ended now.
    Reused {
        /// Whose.
        organization_id: OrganizationId,
    },
}

impl Identity {
    /// Begins a session for a user, in place of those used least recently where there would be too many, and records the sign-in: call it
    /// last, right before the commit.
    ///
    /// # Errors
    /// As the database says.
    pub async fn begin(
        &self,
        tx: &mut Tx,
        clock: &Clock,
        (organization_id, user_id): (OrganizationId, UserId),
        how: &SignIn<'_>,
    ) -> Result<Begun, StoreError> {
        let now = clock.now();
        let session_id: SessionId = clock.id();
        let (refresh, cookie) = (Opaque::random(clock), Opaque::random(clock));
        let others = self.sessions_per_user.saturating_sub(1);
        let ended = sessions::end_beyond(tx, (organization_id, user_id), others, now, now - ENDED_KEPT).await?;
        let session = NewSession {
            id: session_id,
            organization_id,
            user_id,
            method: how.method.as_str(),
            cookie_hash: &cookie.hash(),
            refresh_family: &refresh.family_hash(),
            user_agent: cut(how.visit.user_agent),
            created_at: now,
            expires_at: now + LIFETIME,
        };
        sessions::insert(tx, &session).await?;
        sessions::insert_refresh(tx, &refresh.hash(), (organization_id, session_id), now, now + IDLE).await?;
        let ended_others = !ended.is_empty();
        for session in ended {
            let event = Record {
                organization_id,
                actor: format!("user/{user_id}"),
                action: "auth.logout",
                target: format!("session/{session}"),
                outcome: Outcome::Success,
                details: json!({ "reason": "the user has as many sessions as one may", "replaced_by": session_id }),
            };
            audit::record(tx, clock, event).await?;
        }
        let mut details = how.visit.details(how.method);
        if let (Some(connection), Some(details)) = (how.connection, details.as_object_mut()) {
            details.insert("connection_id".into(), json!(connection));
            if !how.left_out.is_empty() {
                details.insert("attributes_left_out".into(), json!(how.left_out));
            }
        }
        let event = Record {
            organization_id,
            actor: format!("user/{user_id}"),
            action: "auth.login",
            target: format!("session/{session_id}"),
            outcome: Outcome::Success,
            details,
        };
        audit::record(tx, clock, event).await?;
        Ok(Begun { organization_id, user_id, session_id, refresh, cookie, ended_others })
    }

    /// Hands out what a committed session is used with.
    ///
    /// # Errors
    /// As the database says.
    pub async fn hand_out(&self, store: &Store, clock: &Clock, begun: Begun) -> Result<SignedIn, super::IssueError> {
        let Begun { organization_id, user_id, session_id, refresh, cookie, ended_others } = begun;
        let cookie = Some(cookie.reveal(""));
        self.tokens.publish(store, clock).await?;
        let access_token = self.tokens.issue(clock, (organization_id, user_id, session_id))?.into();
        let (expires_in, refresh_token) = (token::LIFETIME.num_seconds(), refresh.reveal(REFRESH_PREFIX));
        Ok(SignedIn {
            organization_id,
            user_id,
            session_id,
            access_token,
            expires_in,
            refresh_token,
            cookie,
            ended_others,
        })
    }

    /// Exchanges a refresh token.
    ///
    /// # Errors
    /// As the database says.
    pub async fn refresh(
        &self,
        store: &Store,
        clock: &Clock,
        presented: &SecretString,
    ) -> Result<Refreshed, super::IssueError> {
        let Some(presented) = Opaque::parse(REFRESH_PREFIX, presented.expose_secret()) else {
            return Ok(Refreshed::Refused);
        };
        let (hash, family) = (presented.hash(), presented.family_hash());
        // Looked up by reading first: what is none of ours costs no more than any other request of nobody's.
        let Some(session) = sessions::of_refresh(&mut store.read().await?, &hash, &family).await? else {
            return Ok(Refreshed::Refused);
        };
        if let Err(wait) = self.throttle.refresh(session) {
            return Ok(Refreshed::Limited(wait));
        }
        let now = clock.now();
        let mut tx = store.begin().await?;
        let token = sessions::lock_refresh(&mut tx, &hash).await?;
        let whose = match &token {
            Some(token) => Some((token.organization_id, token.session_id)),
            None => sessions::by_family(&mut tx, &family).await?,
        };
        let Some((organization_id, session_id)) = whose else {
            return Ok(Refreshed::Refused);
        };
        let Some(user_id) = sessions::user_of(&mut tx, organization_id, session_id).await? else {
            return Ok(Refreshed::Refused);
        };
        let session = Named { organization: organization_id, user: user_id, session: session_id };
        let live = !sessions::by_ids(&mut tx, &[session], live_at(now)).await?.is_empty();
        if !live || token.as_ref().is_some_and(|token| token.expires_at <= now) {
            return Ok(Refreshed::Refused);
        }
        let successor = match token.map(|token| (token.used_at, token.salt)) {
            Some((None, _)) => {
                let (salt, of) = (clock.bytes::<32>(), (organization_id, session_id));
                let successor = presented.successor(&salt);
                sessions::use_refresh(&mut tx, &hash, &salt, now).await?;
                sessions::note_family(&mut tx, of, &family).await?;
                sessions::insert_refresh(&mut tx, &successor.hash(), of, now, now + IDLE).await?;
                sessions::touch(&mut tx, organization_id, session_id, now).await?;
                sessions::forget_used(&mut tx, of, now - USED_KEPT, FORGOTTEN).await?;
                successor
            }
            Some((Some(used_at), Some(salt))) if now - used_at <= GRACE => {
                let successor = presented.successor(&salt);
                // A host of an earlier version has exchanged it where this one is not there.
                let exchanged_here = sessions::lock_refresh(&mut tx, &successor.hash()).await?.is_some();
                if exchanged_here { successor } else { presented.derive(&salt) }
            }
            _ => {
                sessions::revoke(&mut tx, organization_id, session_id, now).await?;
                let event = Record {
                    organization_id,
                    actor: format!("user/{user_id}"),
                    action: "auth.refresh",
                    target: format!("session/{session_id}"),
                    outcome: Outcome::Denied,
                    details: json!({ "reason": "a refresh token was used again; the session was ended" }),
                };
                audit::record(&mut tx, clock, event).await?;
                tx.commit().await?;
                tracing::warn!(%organization_id, %session_id, "a refresh token was used again; the session was ended");
                return Ok(Refreshed::Reused { organization_id });
            }
        };
        tx.commit().await?;
        self.tokens.publish(store, clock).await?;
        let access_token = self.tokens.issue(clock, (organization_id, user_id, session_id))?.into();
        Ok(Refreshed::Tokens(SignedIn {
            organization_id,
            user_id,
            session_id,
            access_token,
            expires_in: token::LIFETIME.num_seconds(),
            refresh_token: successor.reveal(REFRESH_PREFIX),
            cookie: None,
            ended_others: false,
        }))
    }

    /// Ends the session that a browser held before it signed in anew: its cookie is gone, and nothing else would end it for
    /// weeks. Returns whose organization it was in.
    ///
    /// # Errors
    /// As the database says.
    pub async fn replace(
        &self,
        (store, clock): (&Store, &Clock),
        cookie: Option<&str>,
        by: &SignedIn,
    ) -> Result<Option<OrganizationId>, StoreError> {
        let Some(cookie) = cookie.and_then(|cookie| Opaque::parse("", cookie)) else { return Ok(None) };
        let mut tx = store.begin().await?;
        let Some(old) = sessions::revoke_by_cookie(&mut tx, &cookie.hash(), clock.now()).await? else {
            return Ok(None);
        };
        let event = Record {
            organization_id: old.organization,
            actor: format!("user/{}", old.user),
            action: "auth.logout",
            target: format!("session/{}", old.session),
            outcome: Outcome::Success,
            details: json!({
                "reason": "the browser signed in anew",
                // Of another organization's sessions nothing is told.
                "replaced_by": (old.organization == by.organization_id).then_some(by.session_id),
            }),
        };
        audit::record(&mut tx, clock, event).await?;
        tx.commit().await?;
        Ok(Some(old.organization))
    }

    /// Ends the session a user signs out of. Tells whether it was live.
    ///
    /// # Errors
    /// As the database says.
    pub async fn sign_out(
        &self,
        store: &Store,
        clock: &Clock,
        (organization_id, user_id, session_id): (OrganizationId, UserId, SessionId),
    ) -> Result<bool, StoreError> {
        let mut tx = store.begin().await?;
        if !sessions::revoke(&mut tx, organization_id, session_id, clock.now()).await? {
            return Ok(false);
        }
        let event = Record {
            organization_id,
            actor: format!("user/{user_id}"),
            action: "auth.logout",
            target: format!("session/{session_id}"),
            outcome: Outcome::Success,
            details: json!({}),
        };
        audit::record(&mut tx, clock, event).await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// The circumstances of a sign-in, for the session and the audit trail.
pub struct SignIn<'a> {
    /// How.
    pub method: Method,
    /// By which identity connection.
    pub connection: Option<uuid::Uuid>,
    /// Names of attributes that its provider sent and that were left out.
    pub left_out: &'a [String],
    /// From where.
    pub visit: Visit<'a>,
}

/// Now, and since when a session must have been seen to be live now.
pub fn live_at(now: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
    (now, now - IDLE)
}

/// At most [`USER_AGENT`] bytes, at a character's boundary.
pub fn cut(user_agent: &str) -> &str {
    user_agent.get(..user_agent.floor_char_boundary(USER_AGENT)).unwrap_or_default()
}
