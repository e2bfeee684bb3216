//! People of an organization, and the roles they hold.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{AnyOfBuilder, ArrayBuilder, ObjectBuilder, Schema, Type},
    },
};
use uuid::Uuid;

use super::{
    fault::Fault,
    id::{IdentityId, MembershipId, OrganizationId, UserId, WorkspaceId},
    role::Role,
    text::{self, TextFault},
};

/// A person within one organization. Neither the password nor its hash is ever shown.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "019d0e2f-6f3a-7c41-8b52-9d0e1f2a3b4c",
    "organization_id": "019d0e2f-6f39-7a10-9c3d-2b4f6a8c0e1d",
    "email": "ada@example.com",
    "name": "Ada Lovelace",
    "active": true,
    "platform_administrator": false,
    "has_password": true,
    "attributes": { "team": "research", "level": 3, "languages": ["en", "fr"] },
    "created_at": "2026-11-27T09:30:00.000000Z",
    "updated_at": "2026-11-27T09:30:00.000000Z",
}))]
pub struct User {
    /// The id of the user.
    pub id: UserId,
    /// The organization that the user belongs to.
    pub organization_id: OrganizationId,
    /// The e-mail address that the user signs in with, in the spelling that addresses are compared in; unique in the
    /// organization.
    #[schema(format = "email")]
    pub email: String,
    /// The user's display name.
    pub name: String,
    /// Whether the user may sign in.
    pub active: bool,
    /// Whether the user may create organizations and manage what all organizations share.
    pub platform_administrator: bool,
    /// Whether the user can sign in by password.
    pub has_password: bool,
    /// What policies see of the user as `principal.attributes`. Administrators set them, and identity providers those that
    /// they send.
    #[schema(value_type = Attributes)]
    pub attributes: Json<Map<String, Value>>,
    /// When the user was created.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// When the user was last changed.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    #[serde(skip)]
    pub revision: i64,
}

/// A role that a user holds, in the whole organization or in one of its workspaces.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "019d0e30-1b2c-7d3e-8f40-5a6b7c8d9e0f",
    "organization_id": "019d0e2f-6f39-7a10-9c3d-2b4f6a8c0e1d",
    "user_id": "019d0e2f-6f3a-7c41-8b52-9d0e1f2a3b4c",
    "workspace_id": null,
    "role": "developer",
    "created_at": "2026-11-27T09:30:00.000000Z",
    "updated_at": "2026-11-27T09:30:00.000000Z",
}))]
pub struct Membership {
    /// The id of the membership.
    pub id: MembershipId,
    /// The organization that the membership belongs to.
    pub organization_id: OrganizationId,
    /// The user who holds the role.
    pub user_id: UserId,
    /// The workspace that the role is held in; null: the whole organization.
    #[schema(required = true)]
    pub workspace_id: Option<WorkspaceId>,
    /// The role that is held.
    pub role: Role,
    /// When the membership was created.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// When the membership was last changed.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    #[serde(skip)]
    pub revision: i64,
}

/// A link of a user to a subject of an identity provider: who signs in there as that subject is that user here.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(as = UserIdentity, example = json!({
    "id": "019d0e31-2c3d-7e4f-9a51-6b7c8d9e0f1a",
    "organization_id": "019d0e2f-6f39-7a10-9c3d-2b4f6a8c0e1d",
    "connection_id": "019d0e2f-8a9b-7c0d-8e1f-2a3b4c5d6e7f",
    "issuer": "https://login.example.com",
    "subject": "248289761001",
    "user_id": "019d0e2f-6f3a-7c41-8b52-9d0e1f2a3b4c",
    "created_at": "2026-11-27T09:30:00.000000Z",
    "last_sign_in_at": "2026-11-27T16:05:12.480213Z",
}))]
pub struct Identity {
    /// The id of the link.
    pub id: IdentityId,
    /// The organization that the link belongs to.
    pub organization_id: OrganizationId,
    /// The identity connection that the user signs in by.
    pub connection_id: Uuid,
    /// The provider: OpenID Connect's issuer, or an OAuth 2 provider's token endpoint. Empty until the next sign-in where an
    /// earlier version of the server made the link.
    pub issuer: String,
    /// The provider's own identifier of the person (`sub` in OpenID Connect).
    pub subject: String,
    /// The user that the subject is here.
    pub user_id: UserId,
    /// When the link was made.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// When somebody last signed in by the link.
    #[serde(serialize_with = "crate::clock::micros")]
    pub last_sign_in_at: DateTime<Utc>,
}

/// Bytes of attributes, as JSON, at the most: they are read with every request.
const ATTRIBUTES_BYTES: usize = 8 * 1024;
/// Attributes of one user.
const ATTRIBUTES: usize = 64;
/// The name of an attribute, for the OpenAPI document.
const ATTRIBUTE_NAME: &str = "^[A-Za-z_][A-Za-z0-9_]{0,62}$";

/// What the OpenAPI document says of attributes; [`attributes`] enforces it.
#[derive(Debug)]
pub struct Attributes;

impl PartialSchema for Attributes {
    fn schema() -> RefOr<Schema> {
        let of = |kind: Type| ObjectBuilder::new().schema_type(kind);
        let value = AnyOfBuilder::new()
            .item(of(Type::String))
            .item(of(Type::Number))
            .item(of(Type::Boolean))
            .item(ArrayBuilder::new().items(of(Type::String)));
        let about = "Attributes of a user by their names: strings, numbers, booleans and lists of strings, at most 8 KiB of JSON in \
                     all. Texts have nothing invisible in them, and no words that imitate ASCII letters with others.";
        of(Type::Object)
            .property_names(Some(of(Type::String).pattern(Some(ATTRIBUTE_NAME)).build()))
            .additional_properties(Some(Schema::from(value.build())))
            .max_properties(Some(ATTRIBUTES))
            .description(Some(about))
            .into()
    }
}

impl ToSchema for Attributes {}

/// Brings attributes into their one spelling: at most 64 with names of letters, digits and `_` (Cedar's identifiers), 8 KiB in
/// all. Policies compare them, so nothing in a text is invisible or imitates ASCII ([`text::distinct_words`]).
pub fn attributes(pointer: &str, attributes: &mut Map<String, Value>, faults: &mut Vec<Fault>) {
    if attributes.len() > ATTRIBUTES {
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

    /// What the document allows is accepted, and what it does not is refused.
    #[test]
    fn the_document_describes_attributes_as_they_are_checked() {
        let schema = jsonschema::validator_for(&serde_json::to_value(Attributes::schema()).unwrap()).unwrap();
        let many = |count: usize| Value::Object((0..count).map(|n| (format!("a{n}"), n.into())).collect());
        let named = |name: String| Value::Object(Map::from_iter([(name, true.into())]));
        let good = json!({ "team": "core", "level": 1.5, "remote": true, "teams": ["a", "b"], "none": [] });
        for (value, accepted) in [
            (good, true),
            (many(ATTRIBUTES), true),
            (many(ATTRIBUTES + 1), false),
            (named("_".to_owned()), true),
            (named("a".repeat(63)), true),
            (named("a".repeat(64)), false),
            (named(String::new()), false),
            (named("1st".to_owned()), false),
            (named("a-b".to_owned()), false),
            (named("\u{E9}".to_owned()), false),
            (json!({ "nothing": null }), false),
            (json!({ "nested": { "a": 1 } }), false),
            (json!({ "mixed": ["a", 1] }), false),
        ] {
            assert_eq!((schema.is_valid(&value), faults(value.clone()).is_empty()), (accepted, accepted), "{value}");
        }
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
