//! People of an organization.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        email::Email,
        id::{OrganizationId, UserId},
        user::User,
    },
    on,
};

macro_rules! columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, organization_id, email, name, active, platform_administrator,
              password_hash IS NOT NULL AS has_password, attributes, created_at, updated_at, revision ",
            $after
        )
    };
}

/// The organizations that have a platform administrator, by id.
///
/// # Errors
/// As the database says.
pub async fn operators(c: &mut impl Connection) -> Result<Vec<OrganizationId>, StoreError> {
    let sql =
        "SELECT DISTINCT organization_id FROM users WHERE platform_administrator AND active ORDER BY organization_id";
    Ok(on!(c, |c| sqlx::query_scalar(sql).fetch_all(c).await)?)
}

/// Adds a user, with a password's hash (PHC string) if there is one.
///
/// # Errors
/// [`StoreError::Duplicate`] if the organization has someone of this address.
pub async fn insert(tx: &mut Tx, user: &User, password_hash: Option<&str>) -> Result<(), StoreError> {
    let sql = "INSERT INTO users (id, organization_id, email, name, password_hash, active, platform_administrator, attributes,
                                  created_at, updated_at, revision)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, 1)";
    on!(tx, |c| sqlx::query(sql)
        .bind(user.id)
        .bind(user.organization_id)
        .bind(&user.email)
        .bind(&user.name)
        .bind(password_hash)
        .bind(user.active)
        .bind(user.platform_administrator)
        .bind(&user.attributes)
        .bind(user.created_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// One user.
///
/// # Errors
/// As the database says.
pub async fn get(
    c: &mut impl Connection,
    organization: OrganizationId,
    id: UserId,
) -> Result<Option<User>, StoreError> {
    let sql = columns!("SELECT", "FROM users WHERE organization_id = $1 AND id = $2");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// The user of this address.
///
/// # Errors
/// As the database says.
pub async fn by_email(
    c: &mut impl Connection,
    organization: OrganizationId,
    email: &Email,
) -> Result<Option<User>, StoreError> {
    let sql = columns!("SELECT", "FROM users WHERE organization_id = $1 AND email = $2");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(email.as_str()).fetch_optional(c).await)?)
}

/// Users after `after`, oldest first.
///
/// # Errors
/// As the database says.
pub async fn list(
    c: &mut impl Connection,
    organization: OrganizationId,
    after: Uuid,
    limit: i64,
) -> Result<Vec<User>, StoreError> {
    let sql = columns!("SELECT", "FROM users WHERE organization_id = $1 AND id > $2 ORDER BY id LIMIT $3");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(after).bind(limit).fetch_all(c).await)?)
}

/// Changes the name, attributes and whether they may sign in, of a user still at `user.revision`; and the password
/// where a hash is given. Returns the user as they are then.
///
/// # Errors
/// [`StoreError::Stale`] if they changed meanwhile.
pub async fn update(tx: &mut Tx, user: &User, password_hash: Option<&str>) -> Result<User, StoreError> {
    let sql = columns!(
        "UPDATE users SET name = $4, active = $5, attributes = $6, password_hash = COALESCE($7, password_hash),
                updated_at = $8, revision = revision + 1
         WHERE organization_id = $1 AND id = $2 AND revision = $3 RETURNING",
        ""
    );
    let updated = on!(tx, |c| sqlx::query_as(sql)
        .bind(user.organization_id)
        .bind(user.id)
        .bind(user.revision)
        .bind(&user.name)
        .bind(user.active)
        .bind(&user.attributes)
        .bind(password_hash)
        .bind(user.updated_at)
        .fetch_optional(c)
        .await)?;
    updated.ok_or(StoreError::Stale)
}

/// Removes a user with their memberships, sessions and links to identity providers.
///
/// # Errors
/// [`StoreError::Stale`] if they changed meanwhile.
pub async fn delete(tx: &mut Tx, user: &User) -> Result<(), StoreError> {
    let sql = "DELETE FROM users WHERE organization_id = $1 AND id = $2 AND revision = $3";
    let deleted = on!(tx, |c| {
        sqlx::query(sql).bind(user.organization_id).bind(user.id).bind(user.revision).execute(c).await?.rows_affected()
    });
    if deleted == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

/// Writes down that somebody was seen to use a user's address: by their password, or by a provider that vouches for them.
/// Only the first time counts.
///
/// # Errors
/// As the database says.
pub async fn confirm(
    tx: &mut Tx,
    organization: OrganizationId,
    id: UserId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "UPDATE users SET confirmed_at = $3 WHERE organization_id = $1 AND id = $2 AND confirmed_at IS NULL";
    on!(tx, |c| sqlx::query(sql).bind(organization).bind(id).bind(now).execute(c).await.map(drop))?;
    Ok(())
}

/// A user whose address has characters beyond ASCII, which no address has that is accepted now.
#[derive(sqlx::FromRow)]
pub struct Unconverted {
    /// Whose they are.
    pub organization_id: OrganizationId,
    /// Who.
    pub id: UserId,
    /// As it was stored by an earlier version.
    pub email: String,
}

/// Users after `after` whose addresses are not ASCII, of all organizations.
///
/// # Errors
/// As the database says.
pub async fn not_ascii(c: &mut impl Connection, after: Uuid, limit: i64) -> Result<Vec<Unconverted>, StoreError> {
    let sql = "SELECT organization_id, id, email FROM users
               WHERE id > $1 AND octet_length(email) <> length(email) ORDER BY id LIMIT $2";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(after).bind(limit).fetch_all(c).await)?)
}

/// Replaces an address by another spelling of the same one, unless somebody else of the organization has it. Tells whether.
///
/// # Errors
/// As the database says.
pub async fn respell(tx: &mut Tx, user: &Unconverted, email: &Email, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let sql = "UPDATE users SET email = $4, updated_at = $5, revision = revision + 1
               WHERE organization_id = $1 AND id = $2 AND email = $3
                 AND NOT EXISTS (SELECT 1 FROM users other WHERE other.organization_id = $1 AND other.email = $4)";
    let changed = on!(tx, |c| {
        sqlx::query(sql)
            .bind(user.organization_id)
            .bind(user.id)
            .bind(&user.email)
            .bind(email.as_str())
            .bind(now)
            .execute(c)
            .await?
            .rows_affected()
    });
    Ok(changed == 1)
}

/// What signing in by password needs to know of one user.
#[derive(sqlx::FromRow)]
pub struct Credential {
    /// Whose.
    pub organization_id: OrganizationId,
    /// For choosing among several.
    pub organization_name: String,
    /// Who.
    pub user_id: UserId,
    /// Whether they may sign in.
    pub active: bool,
    /// PHC string; absent for those who sign in elsewhere only.
    pub password_hash: Option<String>,
    /// Whether somebody was seen to use the address here; otherwise an administrator has typed it in, and that is all.
    pub confirmed: bool,
}

/// The users of this address, in one organization or in all: signing in is how the organization is found out. Where they are
/// too many, those come first who were seen to use it: nobody is pushed out by typing an address in.
///
/// # Errors
/// As the database says.
pub async fn credentials(
    c: &mut impl Connection,
    email: &Email,
    organization: Option<OrganizationId>,
    most: i64,
) -> Result<Vec<Credential>, StoreError> {
    macro_rules! sql {
        ($condition:literal) => {
            concat!(
                "SELECT u.organization_id, o.name AS organization_name, u.id AS user_id, u.active, u.password_hash,
                        u.confirmed_at IS NOT NULL AS confirmed
                 FROM users u JOIN organizations o ON o.id = u.organization_id
                 WHERE u.email = $1 ",
                $condition,
                " ORDER BY u.active DESC, u.confirmed_at IS NULL, u.id LIMIT $2"
            )
        };
    }
    Ok(match organization {
        None => on!(c, |c| sqlx::query_as(sql!("")).bind(email.as_str()).bind(most).fetch_all(c).await?),
        Some(organization) => on!(c, |c| {
            sqlx::query_as(sql!("AND u.organization_id = $3"))
                .bind(email.as_str())
                .bind(most)
                .bind(organization)
                .fetch_all(c)
                .await?
        }),
    })
}

/// The hash of one user's password.
///
/// # Errors
/// As the database says.
pub async fn password_hash(
    c: &mut impl Connection,
    organization: OrganizationId,
    id: UserId,
) -> Result<Option<String>, StoreError> {
    let sql = "SELECT password_hash FROM users WHERE organization_id = $1 AND id = $2";
    let found: Option<Option<String>> =
        on!(c, |c| sqlx::query_scalar(sql).bind(organization).bind(id).fetch_optional(c).await?);
    Ok(found.flatten())
}

/// Whether a user may sign in, and the hash of their password, locked until the transaction ends.
///
/// # Errors
/// As the database says.
pub async fn lock(
    tx: &mut Tx,
    organization: OrganizationId,
    id: UserId,
) -> Result<Option<(bool, Option<String>)>, StoreError> {
    let sql = match tx {
        Tx::Sqlite(_) => "SELECT active, password_hash FROM users WHERE organization_id = $1 AND id = $2",
        Tx::Postgres(_) => {
            "SELECT active, password_hash FROM users WHERE organization_id = $1 AND id = $2 FOR NO KEY UPDATE"
        }
    };
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// Replaces a hash by one of the same password with newer parameters; nobody's edit, so the revision stays.
///
/// # Errors
/// As the database says.
pub async fn rehash(
    tx: &mut Tx,
    organization: OrganizationId,
    id: UserId,
    (old, new): (&str, &str),
) -> Result<(), StoreError> {
    let sql = "UPDATE users SET password_hash = $4 WHERE organization_id = $1 AND id = $2 AND password_hash = $3";
    on!(tx, |c| sqlx::query(sql).bind(organization).bind(id).bind(old).bind(new).execute(c).await.map(drop))?;
    Ok(())
}

/// Sets the password of a user, whatever their revision: for the command line.
///
/// # Errors
/// As the database says.
pub async fn set_password(
    tx: &mut Tx,
    organization: OrganizationId,
    id: UserId,
    hash: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "UPDATE users SET password_hash = $3, updated_at = $4, revision = revision + 1
               WHERE organization_id = $1 AND id = $2";
    on!(tx, |c| sqlx::query(sql).bind(organization).bind(id).bind(hash).bind(now).execute(c).await.map(drop))?;
    Ok(())
}
