//! Policy sets, their versions, and which version is in force.

use chrono::{DateTime, Utc};

use super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        id::{OrganizationId, PolicySetId, PolicyVersionId},
        policy::{PolicySet, PolicyText, PolicyVersion},
    },
    on,
};

macro_rules! sets {
    ($after:literal) => {
        concat!(
            "SELECT s.id, s.organization_id, s.name, s.description, s.created_by, s.created_at, s.updated_at, s.revision,
                    (SELECT v.number FROM organizations o JOIN policy_versions v
                        ON v.organization_id = o.id AND v.id = o.policy_version_id
                        WHERE o.id = s.organization_id AND v.policy_set_id = s.id) AS active_version,
                    (SELECT MAX(v.number) FROM policy_versions v
                        WHERE v.organization_id = s.organization_id AND v.policy_set_id = s.id) AS latest_version
             FROM policy_sets s ",
            $after
        )
    };
}

macro_rules! versions {
    ($more:literal, $after:literal) => {
        concat!(
            "SELECT id, policy_set_id AS policy_id, number, digest, note, created_by, created_at",
            $more,
            " FROM policy_versions ",
            $after
        )
    };
}

/// Adds a policy set without versions.
///
/// # Errors
/// [`StoreError::Duplicate`] if the organization has one of this name.
pub async fn insert(tx: &mut Tx, set: &PolicySet) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO policy_sets (id, organization_id, name, description, created_by, created_at, updated_at, revision)
               VALUES ($1, $2, $3, $4, $5, $6, $6, 1)";
    on!(tx, |c| sqlx::query(sql)
        .bind(set.id)
        .bind(set.organization_id)
        .bind(&set.name)
        .bind(&set.description)
        .bind(set.created_by)
        .bind(set.created_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// One policy set.
///
/// # Errors
/// As the database says.
pub async fn get(
    c: &mut impl Connection,
    organization: OrganizationId,
    id: PolicySetId,
) -> Result<Option<PolicySet>, StoreError> {
    let sql = sets!("WHERE s.organization_id = $1 AND s.id = $2");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// Policy sets after `after`, oldest first.
///
/// # Errors
/// As the database says.
pub async fn list(
    c: &mut impl Connection,
    organization: OrganizationId,
    after: uuid::Uuid,
    limit: i64,
) -> Result<Vec<PolicySet>, StoreError> {
    let sql = sets!("WHERE s.organization_id = $1 AND s.id > $2 ORDER BY s.id LIMIT $3");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(after).bind(limit).fetch_all(c).await)?)
}

/// How many policy sets the organization has.
///
/// # Errors
/// As the database says.
pub async fn count(c: &mut impl Connection, organization: OrganizationId) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM policy_sets WHERE organization_id = $1";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(organization).fetch_one(c).await)?)
}

/// Changes name and description of a set that is still at `set.revision`.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile.
pub async fn update(tx: &mut Tx, set: &PolicySet) -> Result<(), StoreError> {
    let sql = "UPDATE policy_sets SET name = $4, description = $5, updated_at = $6, revision = revision + 1
               WHERE organization_id = $1 AND id = $2 AND revision = $3";
    let updated = on!(tx, |c| sqlx::query(sql)
        .bind(set.organization_id)
        .bind(set.id)
        .bind(set.revision)
        .bind(&set.name)
        .bind(&set.description)
        .bind(set.updated_at)
        .execute(c)
        .await?
        .rows_affected());
    if updated == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

/// Removes a set with its versions.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile or a version of it is in force.
pub async fn delete(tx: &mut Tx, set: &PolicySet) -> Result<(), StoreError> {
    in_force(tx, set.organization_id).await?;
    let sql = "DELETE FROM policy_sets WHERE organization_id = $1 AND id = $2 AND revision = $3 AND NOT EXISTS (
                   SELECT 1 FROM organizations o JOIN policy_versions v ON v.organization_id = o.id AND v.id = o.policy_version_id
                   WHERE o.id = $1 AND v.policy_set_id = $2)";
    let deleted = on!(tx, |c| sqlx::query(sql)
        .bind(set.organization_id)
        .bind(set.id)
        .bind(set.revision)
        .execute(c)
        .await?
        .rows_affected());
    if deleted == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

/// Locks a set until the transaction ends and returns the number that its next version has; `None` if it is not there.
///
/// # Errors
/// As the database says.
pub async fn next_number(
    tx: &mut Tx,
    organization: OrganizationId,
    id: PolicySetId,
) -> Result<Option<i64>, StoreError> {
    let lock = match tx {
        Tx::Sqlite(_) => "SELECT revision FROM policy_sets WHERE organization_id = $1 AND id = $2",
        Tx::Postgres(_) => "SELECT revision FROM policy_sets WHERE organization_id = $1 AND id = $2 FOR UPDATE",
    };
    let found: Option<i64> = on!(tx, |c| sqlx::query_scalar(lock).bind(organization).bind(id).fetch_optional(c).await)?;
    if found.is_none() {
        return Ok(None);
    }
    let sql =
        "SELECT COALESCE(MAX(number), 0) + 1 FROM policy_versions WHERE organization_id = $1 AND policy_set_id = $2";
    Ok(Some(on!(tx, |c| sqlx::query_scalar(sql).bind(organization).bind(id).fetch_one(c).await)?))
}

/// What was found when a version was validated.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub struct Validation {
    /// A digest of the rules that it was validated by; empty if by an earlier server's.
    pub rules: String,
    /// Its warnings, a JSON array.
    pub warnings: String,
}

/// Adds a version, which changes its set too.
///
/// # Errors
/// As the database says.
pub async fn insert_version(
    tx: &mut Tx,
    organization: OrganizationId,
    written: &PolicyText,
    validation: &Validation,
) -> Result<(), StoreError> {
    let PolicyText { version, text } = written;
    let sql = "INSERT INTO policy_versions
                   (id, organization_id, policy_set_id, number, digest, text, note, created_by, created_at, rules, warnings)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    on!(tx, |c| sqlx::query(sql)
        .bind(version.id)
        .bind(organization)
        .bind(version.policy_id)
        .bind(version.number)
        .bind(&version.digest)
        .bind(text)
        .bind(&version.note)
        .bind(version.created_by)
        .bind(version.created_at)
        .bind(&validation.rules)
        .bind(&validation.warnings)
        .execute(c)
        .await
        .map(drop))?;
    let sql = "UPDATE policy_sets SET revision = revision + 1, updated_at = $3 WHERE organization_id = $1 AND id = $2";
    on!(tx, |c| sqlx::query(sql)
        .bind(organization)
        .bind(version.policy_id)
        .bind(version.created_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// What was found when a version was validated; `None` if it is not there.
///
/// # Errors
/// As the database says.
pub async fn validation(
    c: &mut impl Connection,
    organization: OrganizationId,
    version: PolicyVersionId,
) -> Result<Option<Validation>, StoreError> {
    let sql = "SELECT rules, warnings FROM policy_versions WHERE organization_id = $1 AND id = $2";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(version).fetch_optional(c).await)?)
}

/// One version by its number, with its text.
///
/// # Errors
/// As the database says.
pub async fn version(
    c: &mut impl Connection,
    organization: OrganizationId,
    set: PolicySetId,
    number: i64,
) -> Result<Option<PolicyText>, StoreError> {
    let sql = versions!(", text", "WHERE organization_id = $1 AND policy_set_id = $2 AND number = $3");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(set).bind(number).fetch_optional(c).await)?)
}

/// Versions of a set after `after`, oldest first.
///
/// # Errors
/// As the database says.
pub async fn versions(
    c: &mut impl Connection,
    organization: OrganizationId,
    set: PolicySetId,
    after: uuid::Uuid,
    limit: i64,
) -> Result<Vec<PolicyVersion>, StoreError> {
    let sql = versions!("", "WHERE organization_id = $1 AND policy_set_id = $2 AND id > $3 ORDER BY id LIMIT $4");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(set).bind(after).bind(limit).fetch_all(c).await)?)
}

/// The text of a version, to compile it.
///
/// # Errors
/// As the database says.
pub async fn text(
    c: &mut impl Connection,
    organization: OrganizationId,
    version: PolicyVersionId,
) -> Result<Option<String>, StoreError> {
    let sql = "SELECT text FROM policy_versions WHERE organization_id = $1 AND id = $2";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(organization).bind(version).fetch_optional(c).await)?)
}

/// Locks what is in force until the transaction ends, and returns it.
///
/// # Errors
/// As the database says.
pub async fn in_force(tx: &mut Tx, organization: OrganizationId) -> Result<Option<PolicyVersionId>, StoreError> {
    let sql = match tx {
        Tx::Sqlite(_) => "SELECT policy_version_id FROM organizations WHERE id = $1",
        Tx::Postgres(_) => "SELECT policy_version_id FROM organizations WHERE id = $1 FOR NO KEY UPDATE",
    };
    Ok(on!(tx, |c| sqlx::query_scalar(sql).bind(organization).fetch_one(c).await)?)
}

/// Puts a version in force, or none: then the platform's policies decide alone. What is in force is told by the organization
/// and by each of its sets, so that all of them change. Errors of other versions are forgotten.
///
/// # Errors
/// As the database says; it refuses a version that is not the organization's.
pub async fn put_in_force(
    tx: &mut Tx,
    organization: OrganizationId,
    version: Option<PolicyVersionId>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "UPDATE organizations SET policy_version_id = $2, revision = revision + 1, updated_at = $3 WHERE id = $1";
    on!(tx, |c| sqlx::query(sql).bind(organization).bind(version).bind(now).execute(c).await.map(drop))?;
    let sql = "UPDATE policy_sets SET revision = revision + 1, updated_at = $2 WHERE organization_id = $1";
    on!(tx, |c| sqlx::query(sql).bind(organization).bind(now).execute(c).await.map(drop))?;
    let sql = "DELETE FROM policy_errors WHERE organization_id = $1";
    on!(tx, |c| sqlx::query(sql).bind(organization).execute(c).await.map(drop))?;
    Ok(())
}

/// How often a policy of a version could not be evaluated.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ErrorRow {
    /// Of the policy in its set, from 0.
    pub place: i64,
    /// Its `@id`, or its place in words.
    pub policy: String,
    /// Where it begins, from 1.
    #[sqlx(rename = "text_line")]
    pub line: i64,
    /// From 1.
    #[sqlx(rename = "text_column")]
    pub column: i64,
    /// Of the last time.
    pub message: String,
    /// How many decisions.
    pub count: i64,
    /// When last.
    pub last_at: DateTime<Utc>,
}

/// Adds errors of a version, while it is in force.
///
/// # Errors
/// As the database says.
pub async fn add_errors(
    tx: &mut Tx,
    organization: OrganizationId,
    version: PolicyVersionId,
    row: &ErrorRow,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO policy_errors
                   (organization_id, version_id, place, policy, text_line, text_column, message, count, last_at)
               SELECT o.id, o.policy_version_id, $3, $4, $5, $6, $7, $8, $9
               FROM organizations o WHERE o.id = $1 AND o.policy_version_id = $2
               ON CONFLICT (organization_id, version_id, place) DO UPDATE SET
                   message = EXCLUDED.message, count = policy_errors.count + EXCLUDED.count, last_at = EXCLUDED.last_at";
    on!(tx, |c| sqlx::query(sql)
        .bind(organization)
        .bind(version)
        .bind(row.place)
        .bind(&row.policy)
        .bind(row.line)
        .bind(row.column)
        .bind(&row.message)
        .bind(row.count)
        .bind(row.last_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Errors of the version in force, if it is one of this set: the latest first.
///
/// # Errors
/// As the database says.
pub async fn errors(
    c: &mut impl Connection,
    organization: OrganizationId,
    set: PolicySetId,
    limit: i64,
) -> Result<Vec<ErrorRow>, StoreError> {
    let sql = "SELECT e.place, e.policy, e.text_line, e.text_column, e.message, e.count, e.last_at
               FROM organizations o
               JOIN policy_versions v ON v.organization_id = o.id AND v.id = o.policy_version_id
               JOIN policy_errors e ON e.organization_id = o.id AND e.version_id = v.id
               WHERE o.id = $1 AND v.policy_set_id = $2
               ORDER BY e.last_at DESC, e.place LIMIT $3";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(set).bind(limit).fetch_all(c).await)?)
}
