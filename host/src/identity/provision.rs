//! Which user an identity is: one linked to it, one of the same address that the provider has verified and that is linked to
//! nobody else at this provider, or a new one where the connection gives newcomers a role.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use sqlx::types::Json;

use super::code::clean;
use crate::{
    audit::{self, Record},
    clock::Clock,
    domain::{
        audit::Outcome,
        email::{Email, NotAnEmail},
        id::UserId,
        name::Name,
        role::Role,
        user::{self, Identity, Membership, User},
    },
    plugins::ProviderIdentity,
    store::{
        StoreError, Tx,
        connections::Connection,
        identities::{self, Provider},
        memberships,
        quota::{Allowances, Counted},
        users,
    },
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
    /// The provider vouches for an address that cannot be told from others, or is none.
    #[error("Your identity provider vouches for an e-mail address that is not accepted here. What is accepted is {0}.")]
    Address(NotAnEmail),
    /// The provider's name for them cannot be stored.
    #[error(
        "Your identity provider's identifier of you is empty, has control characters in it, or is longer than 255 bytes."
    )]
    Subject,
    /// The organization has as many users as it may, or newcomers get more roles than one user may have.
    #[error(
        "Your organization has as many users here as it may have, or gives newcomers too many roles. Tell your administrator."
    )]
    Full,
    /// Their link was removed while they signed in.
    #[error("Your identity was removed from your account here a moment ago. Start again.")]
    Unlinked(UserId),
    /// Nobody here has the address, and newcomers have no role.
    #[error("There is no account for {0} here. Ask an administrator of your organization to create one.")]
    Unknown(Email),
    /// The provider itself says that whoever had the address here until now is somebody else: a mailbox that was given to
    /// another person, or an account at the provider that was made anew.
    #[error(
        "The account of your e-mail address here belongs to another identity of the same provider. Ask an administrator of your \
         organization. If that was you, they remove the old identity from your user, and you sign in again. If it was \
         somebody before you, they remove that person's user, and you get one of your own."
    )]
    AnotherSubject {
        /// Whose address it is here.
        user: UserId,
        /// The provider's name for whoever signed in.
        subject: String,
        /// The provider's names for whoever is linked to the user.
        linked: Vec<String>,
    },
    /// A claim is not as the connection requires.
    #[error(
        "Your account at your identity provider is not one of those that belong to this organization (its claim `{0}` is another \
         one). Sign in there with the account of your organization."
    )]
    Claim(String),
    /// The plugin refuses them, in its own words.
    #[error("{0}")]
    Provider(String),
    /// What all tenants share is not for a tenant's provider to hand out.
    #[error("Platform administrators sign in with their password, unless they are linked to a provider already.")]
    PlatformAdministrator(UserId),
}

impl Refusal {
    /// A stable name, for the log, metrics and the audit trail.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::Disabled(_) => "user_disabled",
            Refusal::Unverified => "email_not_verified",
            Refusal::Address(_) => "email_not_accepted",
            Refusal::Subject => "subject_not_accepted",
            Refusal::Full => "organization_full",
            Refusal::Unlinked(_) => "identity_removed",
            Refusal::Unknown(_) => "no_account",
            Refusal::AnotherSubject { .. } => "another_subject",
            Refusal::Claim(_) => "required_claim",
            Refusal::Provider(_) => "refused_by_plugin",
            Refusal::PlatformAdministrator(_) => "platform_administrator",
        }
    }
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

/// What a provider and its plugin vouch for.
pub struct Vouched {
    /// The provider, as links to its people are keyed by it.
    pub issuer: String,
    /// Who it is.
    pub identity: ProviderIdentity,
    /// Whether the connection's `default_role` counts.
    pub default_role: bool,
}

/// Who signed in.
#[derive(Debug)]
pub struct Provisioned {
    /// Who it is here.
    pub user: UserId,
    /// Names of attributes that the provider sent and that are not kept, as far as they are told.
    pub left_out: Vec<String>,
}

/// Names of attributes that are told of one sign-in, and characters of each, at the most.
const LEFT_OUT: (usize, usize) = (16, 64);

/// Bytes of a provider's name for somebody (OpenID Connect Core 1.0, section 2: 255 ASCII characters). With an issuer as long as
/// it may be ([`super::sso`]) it fits into a row of PostgreSQL's index, which has 2,704 bytes.
const SUBJECT_BYTES: usize = 255;

fn subject_fits(subject: &str) -> bool {
    !subject.is_empty() && subject.len() <= SUBJECT_BYTES && !subject.chars().any(char::is_control)
}

/// The user of an identity at this issuer, linked to it from now on.
///
/// # Errors
/// As [`Error`]. [`StoreError::Duplicate`] where the same person signs in for the first time in two tabs: the other one was
/// faster, and looking again finds them.
pub async fn user(
    tx: &mut Tx,
    clock: &Clock,
    (connection, vouched): (&Connection, &Vouched),
    allowances: &Allowances,
) -> Result<Provisioned, Error> {
    let Vouched { issuer, identity, default_role } = vouched;
    if !subject_fits(&identity.subject) {
        return Err(Refusal::Subject.into());
    }
    let (organization, now) = (connection.organization_id, clock.now());
    let provider = Provider { organization, connection: connection.id, issuer };
    if let Some((link, id)) = identities::find(tx, provider, &identity.subject).await? {
        let found = locked(tx, connection, id).await?;
        match identities::signed_in(tx, provider, link, now).await {
            Err(StoreError::Stale) => return Err(Refusal::Unlinked(id).into()),
            kept => kept?,
        }
        let left_out = refresh(tx, clock, connection, found, identity).await?;
        return Ok(Provisioned { user: id, left_out });
    }
    let email = identity.email.as_deref().filter(|_| identity.email_verified).ok_or(Refusal::Unverified)?;
    let email = Email::parse(email).map_err(Refusal::Address)?;
    let (id, left_out) = match users::by_email(tx, organization, &email).await? {
        Some(found) => {
            let found = locked(tx, connection, found.id).await?;
            if found.platform_administrator {
                return Err(Refusal::PlatformAdministrator(found.id).into());
            }
            let id = found.id;
            let linked = identities::subjects(tx, provider, id).await?;
            if linked.contains(&identity.subject) {
                // Another tab was faster. The link is not held by having been seen: looking again does that.
                return Err(StoreError::Duplicate("identities".to_owned()).into());
            }
            if !linked.is_empty() {
                return Err(Refusal::AnotherSubject { user: id, subject: identity.subject.clone(), linked }.into());
            }
            let left_out = refresh(tx, clock, connection, found, identity).await?;
            let changes = json!({ "issuer": issuer, "subject": identity.subject });
            note(tx, clock, connection, id, "user.link", changes).await?;
            (id, left_out)
        }
        None => {
            let roles = roles(&connection.config.0, &identity.groups, *default_role);
            if roles.is_empty() {
                return Err(Refusal::Unknown(email).into());
            }
            newcomer(tx, clock, (connection, identity), &email, &roles, allowances).await?
        }
    };
    let link = Identity {
        id: clock.id(),
        organization_id: organization,
        connection_id: connection.id,
        issuer: issuer.to_owned(),
        subject: identity.subject.clone(),
        user_id: id,
        created_at: now,
        last_sign_in_at: now,
    };
    identities::insert(tx, &link).await?;
    users::confirm(tx, organization, id, now).await?;
    Ok(Provisioned { user: id, left_out })
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
fn roles(config: &Value, groups: &[String], default_role: bool) -> BTreeSet<Role> {
    let role = |value: &Value| serde_json::from_value::<Role>(value.clone()).ok();
    let by_group = config.get("group_roles").and_then(Value::as_object);
    let mut roles: BTreeSet<Role> = by_group
        .into_iter()
        .flatten()
        .filter(|(group, _)| groups.contains(group))
        .filter_map(|(_, r)| role(r))
        .collect();
    if roles.is_empty() && default_role {
        roles.extend(config.get("default_role").and_then(role));
    }
    roles.remove(&Role::Owner);
    roles
}

async fn newcomer(
    tx: &mut Tx,
    clock: &Clock,
    (connection, identity): (&Connection, &ProviderIdentity),
    email: &Email,
    roles: &BTreeSet<Role>,
    allowances: &Allowances,
) -> Result<(UserId, Vec<String>), Error> {
    let (organization_id, now) = (connection.organization_id, clock.now());
    if !allowances.room(tx, organization_id, Counted::Users).await? {
        return Err(Refusal::Full.into());
    }
    let attributes = renewed(&Map::new(), &identity.attributes);
    let left_out = left_out(&identity.attributes, &attributes);
    let user = User {
        id: clock.id(),
        organization_id,
        email: email.as_str().to_owned(),
        name: name(identity, email),
        active: true,
        platform_administrator: false,
        has_password: false,
        attributes: Json(attributes),
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    users::insert(tx, &user, None).await?;
    for role in roles {
        if !allowances.room(tx, organization_id, Counted::Memberships(user.id)).await? {
            return Err(Refusal::Full.into());
        }
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
    note(tx, clock, connection, user.id, "user.create", json!({ "after": user, "roles": roles })).await?;
    Ok((user.id, left_out))
}

/// Takes over what the provider says of somebody's attributes: policies may turn on them. Returns what is left out.
async fn refresh(
    tx: &mut Tx,
    clock: &Clock,
    connection: &Connection,
    before: User,
    identity: &ProviderIdentity,
) -> Result<Vec<String>, StoreError> {
    let mut after = before.clone();
    after.attributes.0 = renewed(&before.attributes.0, &identity.attributes);
    let left_out = left_out(&identity.attributes, &after.attributes.0);
    if after.attributes.0 == before.attributes.0 {
        return Ok(left_out);
    }
    after.updated_at = clock.now();
    let after = users::update(tx, &after, None).await?;
    note(tx, clock, connection, after.id, "user.update", json!({ "before": before, "after": after })).await?;
    Ok(left_out)
}

/// Names of what a provider says and is not kept; what it takes away (`null`) is not among them.
fn left_out(said: &Map<String, Value>, kept: &Map<String, Value>) -> Vec<String> {
    let (most, characters) = LEFT_OUT;
    let names = said.iter().filter(|(name, value)| !value.is_null() && !kept.contains_key(*name)).map(|(name, _)| name);
    names.take(most).map(|name| clean(name, characters)).collect()
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
        let mut one = Map::from_iter([(name.clone(), user::fitting_attribute(value))]);
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
) -> Result<(), StoreError> {
    let event = Record {
        organization_id: connection.organization_id,
        actor: format!("identity_connection/{}", connection.id),
        action,
        target: format!("user/{user}"),
        outcome: Outcome::Success,
        details: json!({ "changes": changes }),
    };
    audit::record(tx, clock, event).await.map(drop)
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
        let of = |names: &[&str]| roles(&config, &groups(names), true).into_iter().collect::<Vec<_>>();
        assert_eq!(of(&[]), [Role::Viewer]);
        assert_eq!(of(&["engineers", "it"]), [Role::Admin, Role::Developer]);
        assert_eq!(of(&["bosses"]), []);
        assert_eq!(of(&["odd"]), [Role::Viewer]);
        assert!(roles(&config, &[], false).is_empty());
        assert!(roles(&json!({}), &groups(&["engineers"]), true).is_empty());
        assert!(roles(&json!({ "default_role": "owner" }), &[], true).is_empty());
    }

    #[test]
    fn what_a_provider_says_has_the_spelling_that_policies_compare() {
        let said = json!({
            "team": " Cafe\u{301}\u{200B} ", "company": "Acme\u{A0}GmbH", "teams": ["a\u{AD}b"], "address": "1 Main St\nX",
            "imitation": "f\u{456}nance", "one_script": "\u{501}\u{435}\u{475}", "department": "Отдел – С",
            "town": "Næstved", "gone": null,
        });
        let renewed = super::renewed(&Map::new(), said.as_object().unwrap());
        let spelled = json!({ "team": "Café", "company": "Acme GmbH", "teams": ["ab"], "address": "1 Main St\nX",
            "department": "Отдел – С", "town": "Næstved" });
        assert_eq!(left_out(said.as_object().unwrap(), &renewed), ["imitation", "one_script"]);
        assert_eq!(Value::Object(renewed), spelled);
        let many: Map<_, _> = (0..100).map(|n| (format!("{n:0>100}"), json!({}))).collect();
        let told = left_out(&many, &Map::new());
        assert_eq!((told.len(), told[0].len()), LEFT_OUT);
    }

    #[test]
    fn a_subject_is_as_long_as_openid_connect_allows() {
        assert!(subject_fits(&"s".repeat(255)) && subject_fits("Ä"));
        for subject in ["", "a\0", "a\nb", &"s".repeat(256), &"Ä".repeat(128)] {
            assert!(!subject_fits(subject), "{subject:?}");
        }
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
        identity.name = Some("Z\u{202E}oe\u{308}".into());
        assert_eq!(name(&identity, &email), "Zoë");
        identity.name = Some("\u{410}da".into());
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
