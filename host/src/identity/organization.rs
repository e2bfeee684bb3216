//! A new organization with its first owner: for the command line and for platform administrators.

use secrecy::SecretString;
use serde_json::json;
use sqlx::types::Json;

use super::{
    password::{self, PasswordError, Passwords},
    turns::Hashing,
};
use crate::{
    audit::{self, Record},
    clock::Clock,
    domain::{
        audit::Outcome,
        email::Email,
        fault::Fault,
        id::{OrganizationId, UserId},
        name::Name,
        role::Role,
        tenancy::{Organization, Workspace},
        user::{Membership, User},
    },
    store::{Store, StoreError, Tx, audit::begin_chain, memberships, organizations, users, workspaces},
};

/// What an organization begins with.
pub struct NewOrganization<'a> {
    /// Its name.
    pub name: &'a Name,
    /// The first owner's address.
    pub owner: &'a Email,
    /// The first owner's name; what stands before the `@` if absent.
    pub owner_name: Option<&'a Name>,
    /// The first owner's password; absent for one who will sign in elsewhere.
    pub password: Option<&'a SecretString>,
    /// Whether the owner may create organizations and manage what all tenants share.
    pub platform_administrator: bool,
    /// Who asks: `system` for the command line.
    pub actor: &'a str,
}

/// Why it was not made.
#[derive(Debug, thiserror::Error)]
pub enum OrganizationError {
    /// The input does not hold up.
    #[error("{}", .0.iter().map(|fault| format!("{}: {}", fault.pointer, fault.message)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Fault>),
    /// The password could not be hashed.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks everything that can be wrong with it, and hashes the password.
///
/// # Errors
/// As [`OrganizationError`], but for the database.
pub async fn prepare(
    passwords: &Passwords,
    clock: &Clock,
    new: &NewOrganization<'_>,
) -> Result<Option<String>, OrganizationError> {
    let mut faults = Vec::new();
    if let Some(password) = new.password {
        password::check("/owner/password", password, new.owner, &mut faults);
    }
    if !faults.is_empty() {
        return Err(OrganizationError::Invalid(faults));
    }
    match new.password {
        Some(password) => Ok(Some(passwords.hash(clock, password, Hashing::Operator).await?)),
        None => Ok(None),
    }
}

/// Adds the organization with a workspace named `Default`, the owner and their membership, begins its audit chain and
/// records `organization.create` there. The caller commits.
///
/// # Errors
/// As the database says.
pub async fn create(
    tx: &mut Tx,
    clock: &Clock,
    new: &NewOrganization<'_>,
    password_hash: Option<&str>,
) -> Result<(Organization, UserId), StoreError> {
    let now = clock.now();
    let organization_id: OrganizationId = clock.id();
    let user_id: UserId = clock.id();
    let organization = Organization {
        id: organization_id,
        name: new.name.to_string(),
        policy_version_id: None,
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    organizations::insert(tx, &organization).await?;
    let workspace = Workspace {
        id: clock.id(),
        organization_id,
        name: "Default".into(),
        description: String::new(),
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    workspaces::insert(tx, &workspace).await?;
    let name = new.owner_name.map_or(new.owner.local(), Name::as_str);
    let user = User {
        id: user_id,
        organization_id,
        email: new.owner.as_str().to_owned(),
        name: name.to_owned(),
        active: true,
        platform_administrator: new.platform_administrator,
        has_password: password_hash.is_some(),
        attributes: Json(serde_json::Map::new()),
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    users::insert(tx, &user, password_hash).await?;
    // The operator says who the first owner is, or a platform administrator.
    users::confirm(tx, organization_id, user_id, now).await?;
    let membership = Membership {
        id: clock.id(),
        organization_id,
        user_id,
        workspace_id: None,
        role: Role::Owner,
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    memberships::insert(tx, &membership).await?;
    begin_chain(tx, organization_id).await?;
    let event = Record {
        organization_id,
        actor: new.actor.to_owned(),
        action: "organization.create",
        target: format!("organization/{organization_id}"),
        outcome: Outcome::Success,
        details: json!({
            "changes": { "after": organization, "owner": user, "workspace": workspace },
        }),
    };
    audit::record(tx, clock, event).await?;
    Ok((organization, user_id))
}

/// [`prepare`], [`create`] and commit.
///
/// # Errors
/// As [`OrganizationError`].
pub async fn create_organization(
    store: &Store,
    clock: &Clock,
    passwords: &Passwords,
    new: &NewOrganization<'_>,
) -> Result<(Organization, UserId), OrganizationError> {
    let hash = prepare(passwords, clock, new).await?;
    let mut tx = store.begin().await?;
    let created = create(&mut tx, clock, new, hash.as_deref()).await?;
    tx.commit().await?;
    Ok(created)
}
