//! A host at a fresh database of each kind.

use std::path::Path;

use chrono::DateTime;
use http::{HeaderMap, HeaderValue, Method, header};
use secrecy::SecretString;

use crate::{
    clock::Clock,
    config::Config,
    domain::{
        client::Client,
        email::Email,
        id::{OrganizationId, UserId},
        name::Name,
        principal::Principal,
    },
    identity::{
        AuthError, Identity,
        login::{Attempt, LoginError},
        organization::{NewOrganization, create_organization},
        session::{Refreshed, SignedIn},
    },
    sandbox::egress,
    secrets::Secrets,
    store::{self, Store, fixture::Database},
};

pub(super) const PASSWORD: &str = "gentle otter drums";

/// A fresh database with one organization, and a host at it.
pub(super) struct Fixture {
    pub(super) url: String,
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) config: Config,
    pub(super) identity: Identity,
    pub(super) organization: OrganizationId,
    pub(super) user: UserId,
    pub(super) email: Email,
    _database: Database,
}

impl Fixture {
    pub(super) async fn each() -> Vec<Self> {
        let mut each = Vec::new();
        for database in Database::each().await {
            each.push(Self::at(database).await);
        }
        each
    }

    async fn at(database: Database) -> Self {
        let (url, store) = (database.url.clone(), database.store.clone());
        let clock = Clock::fixed(DateTime::from_timestamp(1_800_000_000, 0).unwrap(), 7);
        let config = config(&url, database.folder.path());
        let identity = host(&config, &clock, &store).await;
        let (email, password) = (Email::parse("ada@example.com").unwrap(), SecretString::from(PASSWORD));
        let (organization, user) = {
            let new = NewOrganization {
                name: &Name::parse("Acme").unwrap(),
                owner: &email,
                owner_name: Some(&Name::parse("Ada").unwrap()),
                password: Some(&password),
                platform_administrator: false,
                actor: "system",
            };
            create_organization(&store, &clock, &identity.passwords, &new).await.unwrap()
        };
        Self { url, store, clock, config, identity, organization: organization.id, user, email, _database: database }
    }

    pub(super) async fn attempt(&self, password: &str) -> Result<SignedIn, LoginError> {
        let password = SecretString::from(password);
        let attempt = Attempt {
            email: &self.email,
            password: &password,
            organization: None,
            client: Client::UNKNOWN,
            devices: &[],
            user_agent: "test",
        };
        self.identity.login(&self.store, &self.clock, attempt).await
    }

    pub(super) async fn login(&self) -> SignedIn {
        self.attempt(PASSWORD).await.unwrap()
    }

    pub(super) async fn ask(&self, headers: &HeaderMap) -> Result<Principal, AuthError> {
        self.identity.authenticate(&self.store, &self.clock, &Method::GET, headers).await
    }

    pub(super) async fn bearer(&self, token: &str) -> Result<Principal, AuthError> {
        self.ask(&bearer(token)).await
    }

    pub(super) async fn refresh(&self, token: &SecretString) -> Refreshed {
        self.identity.refresh(&self.store, &self.clock, token).await.unwrap()
    }

    pub(super) async fn actions(&self) -> Vec<String> {
        self.actions_of(self.organization).await
    }

    pub(super) async fn actions_of(&self, organization: OrganizationId) -> Vec<String> {
        let events = store::audit::after(&mut self.store.read().await.unwrap(), organization, 0, 100).await.unwrap();
        events.into_iter().map(|event| format!("{} {:?}", event.action, event.outcome)).collect()
    }
}

pub(super) fn config(url: &str, folder: &Path) -> Config {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let flags = [
        set("database_url", url),
        set("data_dir", folder.to_str().unwrap()),
        set("public_url", "https://studio.example.com"),
    ];
    Config::load(None, [], flags).unwrap()
}

pub(super) async fn host(config: &Config, clock: &Clock, store: &Store) -> Identity {
    let policy = egress::Policy::default();
    let egress = egress::Client::new(policy, std::sync::Arc::new(egress::SystemResolver::default()));
    Identity::new(config, clock, store, &Secrets::new([7; 32]), &egress).await.unwrap()
}

pub(super) fn bearer(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap())])
}

pub(super) fn refused(result: Result<Principal, AuthError>) -> bool {
    matches!(result, Err(AuthError::Unauthenticated | AuthError::Expired))
}
