//! People of an organization, and the roles they hold.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;
use uuid::Uuid;

use super::{
    fault::Fault,
    id::{IdentityId, MembershipId, OrganizationId, UserId, WorkspaceId},
    role::Role,
    text::{self, TextFault},
};

/// A person within one organization, as stored and as shown; the password's hash is never among it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct User {
    /// Their id.
    pub id: UserId,
    /// Whose they are.
    pub organization_id: OrganizationId,
    /// E-mail address as it is compared ([`super::email::Email`]), unique in the organization.
    pub email: String,
    /// For people.
    pub name: String,
    /// Whether they may sign in.
    pub active: bool,
    /// May create organizations and manage what all tenants share.
    pub platform_administrator: bool,
    /// Whether they can sign in by password.
    pub has_password: bool,
    /// Visible to policies as `principal.attributes`: strings, numbers, booleans and lists of strings.
    #[schema(value_type = Object)]
    pub attributes: Json<Map<String, Value>>,
    /// When.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// Last change.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    #[serde(skip)]
    pub revision: i64,
}

/// A role held by a user, as stored and as shown.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Membership {
    /// Its id.
    pub id: MembershipId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// Who holds the role.
    pub user_id: UserId,
    /// Where; everywhere in the organization if null.
    pub workspace_id: Option<WorkspaceId>,
    /// The role.
    pub role: Role,
    /// When.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// Last change.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    #[serde(skip)]
    pub revision: i64,
}

/// A link of a user to a subject of an identity provider, as stored and as shown: who signs in as that subject is that user.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Identity {
    /// Its id.
    pub id: IdentityId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// The identity connection.
    pub connection_id: Uuid,
    /// The provider: OpenID Connect's issuer, or an OAuth 2 provider's token endpoint. Empty until the next sign-in where an
    /// earlier version made the link.
    pub issuer: String,
    /// The provider's own name for the person.
    pub subject: String,
    /// Who that is here.
    pub user_id: UserId,
    /// When.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// When somebody last signed in by it.
    #[serde(serialize_with = "crate::clock::micros")]
    pub last_sign_in_at: DateTime<Utc>,
}

/// Bytes of attributes, as JSON, at the most: they are read with every request.
const ATTRIBUTES_BYTES: usize = 8 * 1024;

/// Brings attributes into their one spelling: at most 64 with names of letters, digits and `_` (Cedar's identifiers), 8 KiB in
/// all. Policies compare them, so nothing in a text is invisible or imitates ASCII ([`text::distinct_words`]).
pub fn attributes(pointer: &str, attributes: &mut Map<String, Value>, faults: &mut Vec<Fault>) {
    if attributes.len() > 64 {
        faults.push(Fault::new(pointer, "at most 64 attributes"));
    }
    for (name, value) in attributes.iter_mut() {
        let at = || format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
        let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !first || name.len() > 63 || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            faults
                .push(Fault::new(at(), "a name has 1 to 63 letters, digits or _, and begins with none of the digits"));
        }
        let spelled = match value {
            Value::Array(items) if items.iter().all(Value::is_string) => items.iter_mut().try_for_each(spell),
            Value::Array(_) | Value::Null | Value::Object(_) => {
                faults.push(Fault::new(at(), "a string, a number, true, false or a list of strings"));
                Ok(())
            }
            value => spell(value),
        };
        if let Err(fault) = spelled {
            faults.push(Fault::new(at(), fault.to_string()));
        }
    }
    if serde_json::to_string(attributes).map_or(usize::MAX, |text| text.len()) > ATTRIBUTES_BYTES {
        faults.push(Fault::new(pointer, "at most 8 KiB of JSON"));
    }
}

/// An attribute that an identity provider sends, and that cannot be sent back to it: as people see it.
pub fn fitting_attribute(value: &Value) -> Value {
    match value {
        Value::String(text) => text::fitting_lines(text).into(),
        Value::Array(items) => items.iter().map(fitting_attribute).collect(),
        value => value.clone(),
    }
}

fn spell(value: &mut Value) -> Result<(), TextFault> {
    if let Value::String(text) = value {
        *text = text::distinct_words(text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(value: Value) -> Vec<Fault> {
        let (mut faults, mut map) = (Vec::new(), value.as_object().unwrap().clone());
        attributes("/attributes", &mut map, &mut faults);
        faults
    }

    #[test]
    fn attributes_have_one_spelling() {
        let mut map = json!({ "team": " Cafe\u{301} ", "teams": ["a  b"], "address": "1 Main St\nSpringfield" });
        let (map, mut found) = (map.as_object_mut().unwrap(), Vec::new());
        attributes("", map, &mut found);
        let spelled = json!({ "team": "Café", "teams": ["a b"], "address": "1 Main St\nSpringfield" });
        assert_eq!((Value::Object(map.clone()), found.len()), (spelled, 0));
        let invisible = faults(json!({ "team": "co\u{200B}re", "teams": ["\u{202E}a"] }));
        let imitating = faults(json!({ "team": "\u{501}\u{435}\u{475}", "teams": ["ok", "\u{441}\u{43E}\u{440}e"] }));
        assert!(imitating[0].message.ends_with("write `dev`") && imitating.len() == 2, "{imitating:?}");
        assert!(invisible[0].message.contains("U+200B") && invisible[1].message.contains("U+202E"), "{invisible:?}");
    }

    #[test]
    fn attributes_are_plain_values_and_small() {
        assert!(faults(json!({ "team": "core", "level": 3, "remote": true, "teams": ["a", "b"] })).is_empty());
        assert_eq!(faults(json!({ "nested": { "a": 1 } }))[0].pointer, "/attributes/nested");
        assert_eq!(faults(json!({ "mixed": ["a", 1] })).len(), 1);
        assert_eq!(faults(json!({ "nul": "a\u{0}", "nuls": ["\u{0}"] })).len(), 2);
        assert_eq!(faults(json!({ "nothing": null })).len(), 1);
        assert_eq!(faults(json!({ "a/b": "c" }))[0].pointer, "/attributes/a~1b");
        assert_eq!(faults(json!({ "1st": "c" })).len(), 1);
        assert_eq!(faults(json!({ "long": "x".repeat(9000) })).len(), 1);
    }
}
