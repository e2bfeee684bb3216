//! Which user an identity is: one linked to it, one of the same address that the provider has verified, or a new one
//! where the connection gives newcomers a role.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use sqlx::types::Json;

use crate::{
    audit::{self, Record},
    clock::Clock,
    domain::{
        audit::Outcome,
        email::Email,
        id::UserId,
        name::Name,
        role::Role,
        user::{self, Membership, User},
    },
    plugins::ProviderIdentity,
    store::{Store, StoreError, Tx, accounts, connections::Connection, memberships, users},
};

/// Why somebody who signed in at the provider may not sign in here. Said to them as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// They may not sign in any more.
    #[error("Your account here is disabled.")]
    Disabled(UserId),
    /// Without a verified address they cannot be matched with anyone.
    #[error(
        "Your identity provider does not vouch for an e-mail address of yours, and no account here is linked to you yet."
    )]
    Unverified,
    /// Nobody here has the address, and newcomers have no role.
    #[error("There is no account for {0} here. Ask an administrator of your organization to create one.")]
    Unknown(Email),
    /// The plugin refuses them, in its own words.
    #[error("{0}")]
    Provider(String),
    /// What all tenants share is not for a tenant's provider to hand out.
    #[error("Platform administrators sign in with their password, unless they are linked to a provider already.")]
    PlatformAdministrator(UserId),
}

/// Why there is no user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They may not.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The user of an identity, linked to it from now on.
///
/// # Errors
/// As [`Error`].
pub async fn user(
    tx: &mut Tx,
    clock: &Clock,
    connection: &Connection,
    identity: &ProviderIdentity,
    request_id: &str,
) -> Result<UserId, Error> {
    let (organization, now) = (connection.organization_id, clock.now());
    if let Some(id) = accounts::find(tx, organization, connection.id, &identity.subject).await? {
        let found = locked(tx, connection, id).await?;
        accounts::link(tx, organization, connection.id, &identity.subject, id, now).await?;
        refresh(tx, clock, connection, found, identity, request_id).await?;
        return Ok(id);
    }
    let email = identity.email.as_deref().filter(|_| identity.email_verified).and_then(|e| Email::parse(e).ok());
    let email = email.ok_or(Refusal::Unverified)?;
    let id = match users::by_email(tx, organization, &email).await? {
        Some(found) => {
            let found = locked(tx, connection, found.id).await?;
            if found.platform_administrator {
                return Err(Refusal::PlatformAdministrator(found.id).into());
            }
            let id = found.id;
            refresh(tx, clock, connection, found, identity, request_id).await?;
            note(tx, clock, connection, id, "user.link", json!({ "subject": identity.subject }), request_id).await?;
            id
        }
        None => {
            let roles = roles(&connection.config.0, &identity.groups);
            if roles.is_empty() {
                return Err(Refusal::Unknown(email).into());
            }
            newcomer(tx, clock, connection, identity, &email, &roles, request_id).await?
        }
    };
    accounts::link(tx, organization, connection.id, &identity.subject, id, now).await?;
    Ok(id)
}

/// The user as they are now, kept so until the transaction ends: whoever disables or removes them waits, and then finds
/// the session that is begun here. Comes before the audit chain's lock, as it does for those.
async fn locked(tx: &mut Tx, connection: &Connection, id: UserId) -> Result<User, Error> {
    let organization = connection.organization_id;
    let active = users::lock(tx, organization, id).await?.is_some_and(|(active, _)| active);
    match users::get(tx, organization, id).await? {
        Some(user) if active => Ok(user),
        _ => Err(Refusal::Disabled(id).into()),
    }
}

/// The roles that a connection gives newcomers: `group_roles` (a role by group) and `default_role`. Never ownership, which
/// owners alone give.
fn roles(config: &Value, groups: &[String]) -> BTreeSet<Role> {
    let role = |value: &Value| serde_json::from_value::<Role>(value.clone()).ok();
    let by_group = config.get("group_roles").and_then(Value::as_object);
    let mut roles: BTreeSet<Role> = by_group
        .into_iter()
        .flatten()
        .filter(|(group, _)| groups.contains(group))
        .filter_map(|(_, r)| role(r))
        .collect();
    if roles.is_empty() {
        roles.extend(config.get("default_role").and_then(role));
    }
    roles.remove(&Role::Owner);
    roles
}

async fn newcomer(
    tx: &mut Tx,
    clock: &Clock,
    connection: &Connection,
    identity: &ProviderIdentity,
    email: &Email,
    roles: &BTreeSet<Role>,
    request_id: &str,
) -> Result<UserId, StoreError> {
    let (organization_id, now) = (connection.organization_id, clock.now());
    let user = User {
        id: clock.id(),
        organization_id,
        email: email.as_str().to_owned(),
        name: name(identity, email),
        active: true,
        platform_administrator: false,
        has_password: false,
        attributes: Json(renewed(&Map::new(), &identity.attributes)),
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    users::insert(tx, &user, None).await?;
    for role in roles {
        let membership = Membership {
            id: clock.id(),
            organization_id,
            user_id: user.id,
            workspace_id: None,
            role: *role,
            created_at: now,
            updated_at: now,
            revision: 1,
        };
        memberships::insert(tx, &membership).await?;
    }
    note(tx, clock, connection, user.id, "user.create", json!({ "after": user, "roles": roles }), request_id).await?;
    Ok(user.id)
}

/// Takes over what the provider says of somebody's attributes: policies may turn on them.
async fn refresh(
    tx: &mut Tx,
    clock: &Clock,
    connection: &Connection,
    before: User,
    identity: &ProviderIdentity,
    request_id: &str,
) -> Result<(), StoreError> {
    let mut after = before.clone();
    after.attributes.0 = renewed(&before.attributes.0, &identity.attributes);
    if after.attributes.0 == before.attributes.0 {
        return Ok(());
    }
    after.updated_at = clock.now();
    let after = users::update(tx, &after, None).await?;
    note(tx, clock, connection, after.id, "user.update", json!({ "before": before, "after": after }), request_id).await
}

/// What was known of somebody, with what their provider says now. What it names and cannot be kept (`null` among it) does not
/// hold any more either: it goes, and so does all that it names where that is too much together.
fn renewed(known: &Map<String, Value>, said: &Map<String, Value>) -> Map<String, Value> {
    let faults_of = |attributes: &mut Map<String, Value>| {
        let mut faults = Vec::new();
        user::attributes("", attributes, &mut faults);
        faults
    };
    let others = known.iter().filter(|(name, _)| !said.contains_key(*name)).map(|(n, v)| (n.clone(), v.clone()));
    let others: Map<String, Value> = others.collect();
    let mut renewed = others.clone();
    for (name, value) in said {
        let mut one = Map::from_iter([(name.clone(), value.clone())]);
        if faults_of(&mut one).is_empty() {
            renewed.extend(one);
        }
    }
    // Of all together only what is said of no single one: what somebody else gave is theirs to mend.
    let too_much = faults_of(&mut renewed.clone()).iter().any(|fault| fault.pointer.is_empty());
    if too_much { others } else { renewed }
}

/// A name to show, whatever the provider sent.
fn name(identity: &ProviderIdentity, email: &Email) -> String {
    let name = identity.name.as_deref().and_then(Name::fitting);
    name.map_or_else(|| email.local().to_owned(), Into::into)
}

async fn note(
    tx: &mut Tx,
    clock: &Clock,
    connection: &Connection,
    user: UserId,
    action: &str,
    changes: Value,
    request_id: &str,
) -> Result<(), StoreError> {
    let event = Record {
        organization_id: connection.organization_id,
        actor: format!("identity_connection/{}", connection.id),
        action,
        target: format!("user/{user}"),
        outcome: Outcome::Success,
        details: json!({ "request_id": request_id, "changes": changes }),
    };
    audit::record(tx, clock, event).await.map(drop)
}

/// Records that somebody was not let in although they signed in at their provider.
///
/// # Errors
/// As the database says.
pub async fn record(
    store: &Store,
    clock: &Clock,
    connection: &Connection,
    refusal: &Refusal,
    request_id: &str,
) -> Result<(), StoreError> {
    let target = match refusal {
        Refusal::Disabled(user) | Refusal::PlatformAdministrator(user) => format!("user/{user}"),
        Refusal::Unverified | Refusal::Unknown(_) | Refusal::Provider(_) => {
            format!("identity_connection/{}", connection.id)
        }
    };
    let event = Record {
        organization_id: connection.organization_id,
        actor: "anonymous".to_owned(),
        action: "auth.login",
        target,
        outcome: Outcome::Failure,
        details: json!({
            "request_id": request_id,
            "method": "sso",
            "connection_id": connection.id,
            "reason": refusal.to_string(),
        }),
    };
    let mut tx = store.begin().await?;
    audit::record(&mut tx, clock, event).await?;
    tx.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newcomers_get_the_roles_of_their_groups_and_never_ownership() {
        let config = json!({
            "default_role": "viewer",
            "group_roles": { "engineers": "developer", "bosses": "owner", "it": "admin", "odd": "emperor" },
        });
        let groups = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let of = |names: &[&str]| roles(&config, &groups(names)).into_iter().collect::<Vec<_>>();
        assert_eq!(of(&[]), [Role::Viewer]);
        assert_eq!(of(&["engineers", "it"]), [Role::Admin, Role::Developer]);
        assert_eq!(of(&["bosses"]), []);
        assert_eq!(of(&["odd"]), [Role::Viewer]);
        assert!(roles(&json!({}), &groups(&["engineers"])).is_empty());
        assert!(roles(&json!({ "default_role": "owner" }), &[]).is_empty());
    }

    #[test]
    fn names_and_attributes_are_made_to_fit() {
        let email = Email::parse("ada@example.com").unwrap();
        let mut identity = ProviderIdentity {
            subject: "1".into(),
            email: None,
            email_verified: false,
            name: Some(" Ada\u{7} Lovelace ".into()),
            groups: vec![],
            attributes: Map::new(),
        };
        assert_eq!(name(&identity, &email), "Ada Lovelace");
        identity.name = Some("\n".into());
        assert_eq!(name(&identity, &email), "ada");
        let renewed = |known: Value, said: Value| {
            Value::Object(super::renewed(known.as_object().unwrap(), said.as_object().unwrap()))
        };
        let said = json!({ "level": 3, "nested": { "a": 1 }, "bad name": "x" });
        assert_eq!(renewed(json!({}), said), json!({ "level": 3 }));
        // What the provider takes away is gone; what somebody else gave stays.
        let known = json!({ "level": 3, "roles": ["admin"], "desk": "12" });
        let said = json!({ "level": 2, "roles": null });
        assert_eq!(renewed(known.clone(), said), json!({ "level": 2, "desk": "12" }));
        let said = json!({ "level": 2, "roles": ["r".repeat(5000)], "more": "m".repeat(5000) });
        assert_eq!(renewed(known, said), json!({ "desk": "12" }), "too much together");
    }
}
