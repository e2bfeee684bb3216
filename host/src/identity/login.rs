//! Signing in by password.

use std::time::Duration;

use secrecy::SecretString;
use serde_json::json;

use super::{
    Identity, IssueError,
    device::Device,
    failures::{self, Visit},
    password::{PasswordError, Verdict},
    session::{Method, SignIn, SignedIn},
    throttle::{Account, Party},
    turns::Hashing,
};
use crate::{
    audit::{self, Record},
    clock::Clock,
    domain::{
        audit::Outcome,
        client::Client,
        email::Email,
        id::{OrganizationId, SessionId, UserId},
    },
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
    pub client: Client,
    /// Which accounts the browser signed in to before.
    pub devices: &'a [Device],
    /// As the browser names itself.
    pub user_agent: &'a str,
}

/// Why somebody was not signed in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// No active user has this address and password. With the organizations whose audit trails tell of it.
    #[error("wrong address or password")]
    Credentials(Vec<OrganizationId>),
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

impl Attempt<'_> {
    fn visit(&self) -> Visit<'_> {
        Visit { client: self.client, user_agent: self.user_agent }
    }
}

impl LoginError {
    /// A stable name, for the log and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            LoginError::Credentials(_) => "wrong_credentials",
            LoginError::Several(_) => "several_organizations",
            LoginError::Limited(_) => "rate_limited",
            LoginError::Password(PasswordError::Busy) => "busy",
            LoginError::Password(_) => "internal",
            LoginError::Issue(error) => error.code(),
        }
    }
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
        let result = self.attempted(store, clock, &attempt).await;
        let outcome = result.as_ref().map_or_else(LoginError::code, |_| "success");
        failures::count(Method::Password, outcome);
        // Not the address: people type their password there. Nor who is limited: as often as they like.
        if result.as_ref().is_err_and(|error| !matches!(error, LoginError::Limited(_))) {
            tracing::info!(code = outcome, client = %attempt.client.address, "sign-in by password failed");
        }
        result
    }

    async fn attempted(&self, store: &Store, clock: &Clock, attempt: &Attempt<'_>) -> Result<SignedIn, LoginError> {
        let begun = tokio::time::Instant::now();
        let mut conn = store.read().await?;
        let most = self.sign_in_organizations;
        let users = users::credentials(&mut conn, attempt.email, attempt.organization, most).await?;
        drop(conn);
        let (users, parties) = self.may_be_tried(users, attempt).map_err(LoginError::Limited)?;
        let result = self.verified(store, clock, attempt, (&users, &parties)).await;
        match &result {
            Err(LoginError::Credentials(_)) => tokio::time::sleep_until(begun + FAILURE).await,
            Ok(signed_in) => self.throttle.succeeded(signed_in.user_id, attempt.client),
            Err(_) => {}
        }
        result
    }

    /// Which of the users of an address this password may be compared with now, and whom wrong ones are counted for.
    ///
    /// # Errors
    /// If there are none: how long to wait.
    fn may_be_tried(
        &self,
        users: Vec<Credential>,
        attempt: &Attempt<'_>,
    ) -> Result<(Vec<Credential>, Vec<Party>), Duration> {
        let stranger = Party::Network(attempt.client.network());
        if users.is_empty() {
            self.throttle.attempt(&Account::Nobody(attempt.email.clone()), stranger)?;
        }
        let (mut tried, mut parties, mut waits) = (Vec::new(), Vec::new(), Vec::new());
        for user in users {
            let party = self.devices.of(attempt.devices, user.user_id).map_or(stranger, Party::Device);
            match self.throttle.attempt(&Account::User(user.user_id), party) {
                Ok(()) => {
                    tried.push(user);
                    parties.push(party);
                }
                Err(wait) => waits.push(wait),
            }
        }
        match waits.into_iter().min() {
            Some(wait) if tried.is_empty() => Err(wait),
            _ => Ok((tried, parties)),
        }
    }

    /// Whether this is the password of somebody who is signed in: for changes that ask for it once more. Wrong ones are
    /// counted by the session, so that nobody else can use them up.
    ///
    /// # Errors
    /// As [`LoginError`].
    pub async fn confirm(
        &self,
        (organization, user, session): (OrganizationId, UserId, SessionId),
        password: &SecretString,
        stored: Option<String>,
    ) -> Result<bool, LoginError> {
        let (account, party) = (Account::User(user), Party::Session(session));
        self.throttle.attempt(&account, party).map_err(LoginError::Limited)?;
        let verdicts = self.passwords.verify(password, vec![stored], Hashing::Organization(organization)).await?;
        let right = verdicts.iter().any(|verdict| *verdict != Verdict::Wrong);
        if !right {
            self.throttle.failed(&account, party);
        }
        Ok(right)
    }

    async fn verified(
        &self,
        store: &Store,
        clock: &Clock,
        attempt: &Attempt<'_>,
        (users, parties): (&[Credential], &[Party]),
    ) -> Result<SignedIn, LoginError> {
        let known = known(parties);
        let hashing = known.map_or(Hashing::Client(attempt.client.network()), Hashing::Account);
        let hashes = users.iter().map(|user| user.password_hash.clone()).collect();
        let verdicts = self.passwords.verify(attempt.password, hashes, hashing).await?;
        let right = |(user, verdict): &(&Credential, Verdict)| *verdict != Verdict::Wrong && user.active;
        // Also where it is right for another user of the address: who sets that one's password chooses what is tried here.
        for (tried, party) in users.iter().zip(verdicts.iter().copied()).zip(parties) {
            if !right(&tried) {
                self.throttle.failed(&Account::User(tried.0.user_id), *party);
            }
        }
        if users.is_empty() {
            let stranger = Party::Network(attempt.client.network());
            self.throttle.failed(&Account::Nobody(attempt.email.clone()), stranger);
        }
        let matches: Vec<_> = users.iter().zip(verdicts).filter(right).collect();
        match matches.as_slice() {
            [] => {
                if known.is_none() {
                    self.throttle.client_failed(attempt.client);
                }
                Err(LoginError::Credentials(failure(store, clock, users, attempt).await?))
            }
            [(user, verdict)] => self.enter(store, clock, user, (*verdict, hashing), attempt).await,
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
        (verdict, hashing): (Verdict, Hashing),
        attempt: &Attempt<'_>,
    ) -> Result<SignedIn, LoginError> {
        let fresh = match verdict {
            Verdict::Outdated => Some(self.passwords.hash(clock, attempt.password, hashing).await?),
            _ => None,
        };
        let mut tx = store.begin().await?;
        // The password may have been changed, or the user disabled, since it was read: then there is nobody to let in.
        // Whoever does so now waits, and then finds the session that is begun here.
        let now = users::lock(&mut tx, user.organization_id, user.user_id).await?;
        if now != Some((true, user.password_hash.clone())) {
            return Err(LoginError::Credentials(Vec::new()));
        }
        if let (Some(old), Some(new)) = (&user.password_hash, &fresh) {
            users::rehash(&mut tx, user.organization_id, user.user_id, (old, new)).await?;
        }
        if !user.confirmed {
            users::confirm(&mut tx, user.organization_id, user.user_id, clock.now()).await?;
        }
        let how = SignIn { method: Method::Password, connection: None, left_out: &[], visit: attempt.visit() };
        let begun = self.begin(&mut tx, clock, (user.organization_id, user.user_id), &how).await?;
        tx.commit().await?;
        Ok(self.hand_out(store, clock, begun).await?)
    }
}

/// The account that a browser is known by, if it signed in before to every account that is tried. One of them is not enough: anybody
/// can make a user of somebody else's address in an organization of their own, and sign in as that one.
fn known(parties: &[Party]) -> Option<[u8; 16]> {
    let devices = parties.iter().map(|party| match party {
        Party::Device(device) => Some(device),
        _ => None,
    });
    let devices = devices.collect::<Option<Vec<_>>>()?;
    devices.first().map(|device| device.account())
}

/// Records a failed attempt in each organization in which the person was seen to use this address before. Anybody may make a
/// user of anybody's address: that alone doesn't let them read when and where its owner mistypes a password.
async fn failure(
    store: &Store,
    clock: &Clock,
    users: &[Credential],
    attempt: &Attempt<'_>,
) -> Result<Vec<OrganizationId>, StoreError> {
    let mut told = Vec::new();
    for user in users.iter().filter(|user| user.confirmed) {
        let (code, reason) = match user.active {
            true => ("wrong_password", "wrong password"),
            false => ("user_disabled", "the user is disabled, or the password is wrong"),
        };
        let mut details = attempt.visit().details(Method::Password);
        if let Some(details) = details.as_object_mut() {
            details.insert("code".into(), json!(code));
            details.insert("reason".into(), json!(reason));
        }
        let event = Record {
            organization_id: user.organization_id,
            actor: "anonymous".to_owned(),
            action: "auth.login",
            target: format!("user/{}", user.user_id),
            outcome: Outcome::Failure,
            details,
        };
        let mut tx = store.begin().await?;
        audit::record(&mut tx, clock, event).await?;
        tx.commit().await?;
        told.push(user.organization_id);
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use uuid::Uuid;

    use super::*;
    use crate::domain::client::Network;

    #[test]
    fn a_browser_is_known_to_all_accounts_that_it_tries_or_not_at_all() {
        let [one, two] = [1, 2].map(|n| Party::Device(Device::test(UserId(Uuid::from_u128(n)), 1)));
        let stranger = Party::Network(Network::of(Ipv4Addr::LOCALHOST.into()));
        let account = Uuid::from_u128(1).into_bytes();
        assert_eq!(known(&[one]), Some(account));
        assert_eq!(known(&[one, two]), Some(account));
        // Anybody can be known to an account of the same address in an organization of their own.
        assert_eq!(known(&[one, stranger]), None);
        assert_eq!(known(&[stranger]), None);
        assert_eq!(known(&[]), None);
    }
}
