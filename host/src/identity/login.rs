//! Signing in by password.

use std::{net::IpAddr, time::Duration};

use secrecy::SecretString;
use serde_json::json;

use super::{
    Identity, IssueError,
    password::{PasswordError, Verdict},
    session::{Method, SignIn, SignedIn},
};
use crate::{
    audit::{self, Record},
    clock::Clock,
    domain::{audit::Outcome, email::Email, id::OrganizationId},
    store::{
        Store, StoreError,
        users::{self, Credential},
    },
};

/// An answer to a failed attempt takes at least this long, whatever was done for it: how long it takes must not tell
/// whether there is such a user.
const FAILURE: Duration = Duration::from_millis(300);

/// An attempt to sign in.
pub struct Attempt<'a> {
    /// Who they say they are.
    pub email: &'a Email,
    /// How they prove it.
    pub password: &'a SecretString,
    /// Where; wherever the password is right if absent.
    pub organization: Option<OrganizationId>,
    /// From where.
    pub client: Option<IpAddr>,
    /// As the browser names itself.
    pub user_agent: &'a str,
    /// The request's.
    pub request_id: &'a str,
}

/// Why somebody was not signed in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// No active user has this address and password.
    #[error("wrong address or password")]
    Credentials,
    /// Several have: they are to choose.
    #[error("several organizations")]
    Several(Vec<(OrganizationId, String)>),
    /// Too many attempts; how long to wait.
    #[error("too many attempts")]
    Limited(Duration),
    /// Too many passwords to look at.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The tokens could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl From<StoreError> for LoginError {
    fn from(error: StoreError) -> Self {
        LoginError::Issue(error.into())
    }
}

impl Identity {
    /// Signs in by password. Success is recorded, and failure where the person was seen to use this address before.
    ///
    /// # Errors
    /// As [`LoginError`].
    pub async fn login(&self, store: &Store, clock: &Clock, attempt: Attempt<'_>) -> Result<SignedIn, LoginError> {
        self.throttle.attempt(attempt.email, attempt.client).map_err(LoginError::Limited)?;
        let begun = tokio::time::Instant::now();
        let result = self.verified(store, clock, &attempt).await;
        if let Err(LoginError::Credentials) = result {
            self.throttle.failed(attempt.email, attempt.client);
            tokio::time::sleep_until(begun + FAILURE).await;
        }
        result
    }

    /// Whether this is somebody's password: for changes that ask for it once more. Counts as an attempt to sign in.
    ///
    /// # Errors
    /// As [`LoginError`].
    pub async fn confirm(
        &self,
        email: &Email,
        client: Option<IpAddr>,
        password: &SecretString,
        stored: Option<String>,
    ) -> Result<bool, LoginError> {
        self.throttle.attempt(email, client).map_err(LoginError::Limited)?;
        let verdicts = self.passwords.verify(password, vec![stored]).await?;
        let right = verdicts.iter().any(|verdict| *verdict != Verdict::Wrong);
        if !right {
            self.throttle.failed(email, client);
        }
        Ok(right)
    }

    async fn verified(&self, store: &Store, clock: &Clock, attempt: &Attempt<'_>) -> Result<SignedIn, LoginError> {
        let users = users::credentials(&mut store.read().await?, attempt.email, attempt.organization).await?;
        let hashes = users.iter().map(|user| user.password_hash.clone()).collect();
        let verdicts = self.passwords.verify(attempt.password, hashes).await?;
        let right = |(user, verdict): &(&Credential, Verdict)| *verdict != Verdict::Wrong && user.active;
        let matches: Vec<_> = users.iter().zip(verdicts).filter(right).collect();
        match matches.as_slice() {
            [] => {
                failure(store, clock, &users, attempt).await?;
                Err(LoginError::Credentials)
            }
            [(user, verdict)] => self.enter(store, clock, user, *verdict, attempt).await,
            several => Err(LoginError::Several(
                several.iter().map(|(u, _)| (u.organization_id, u.organization_name.clone())).collect(),
            )),
        }
    }

    async fn enter(
        &self,
        store: &Store,
        clock: &Clock,
        user: &Credential,
        verdict: Verdict,
        attempt: &Attempt<'_>,
    ) -> Result<SignedIn, LoginError> {
        let fresh = match verdict {
            Verdict::Outdated => Some(self.passwords.hash(clock, attempt.password).await?),
            _ => None,
        };
        let mut tx = store.begin().await?;
        // The password may have been changed, or the user disabled, since it was read: then there is nobody to let in.
        // Whoever does so now waits, and then finds the session that is begun here.
        let now = users::lock(&mut tx, user.organization_id, user.user_id).await?;
        if now != Some((true, user.password_hash.clone())) {
            return Err(LoginError::Credentials);
        }
        if let (Some(old), Some(new)) = (&user.password_hash, &fresh) {
            users::rehash(&mut tx, user.organization_id, user.user_id, (old, new)).await?;
        }
        if !user.confirmed {
            users::confirm(&mut tx, user.organization_id, user.user_id, clock.now()).await?;
        }
        let how = SignIn {
            method: Method::Password,
            connection: None,
            user_agent: attempt.user_agent,
            request_id: attempt.request_id,
        };
        let begun = self.begin(&mut tx, clock, (user.organization_id, user.user_id), &how).await?;
        tx.commit().await?;
        Ok(self.hand_out(store, clock, begun).await?)
    }
}

/// Records a failed attempt in each organization in which the person was seen to use this address before. Anybody may make a
/// user of anybody's address: that alone doesn't let them read when and where its owner mistypes a password.
async fn failure(store: &Store, clock: &Clock, users: &[Credential], attempt: &Attempt<'_>) -> Result<(), StoreError> {
    for user in users.iter().filter(|user| user.confirmed) {
        let reason = if user.active { "wrong password" } else { "the user is disabled, or the password is wrong" };
        let event = Record {
            organization_id: user.organization_id,
            actor: "anonymous".to_owned(),
            action: "auth.login",
            target: format!("user/{}", user.user_id),
            outcome: Outcome::Failure,
            details: json!({ "request_id": attempt.request_id, "method": Method::Password.as_str(), "reason": reason }),
        };
        let mut tx = store.begin().await?;
        audit::record(&mut tx, clock, event).await?;
        tx.commit().await?;
    }
    Ok(())
}
