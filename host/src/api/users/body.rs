//! What a user looks like from outside: the bodies of the routes that create and change one.

use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::domain::{email::Email, name::Name, role::Role, user::Attributes};

/// A new user.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "email": "ada@example.com",
    "name": "Ada Lovelace",
    "password": "violet harbour lamp 41",
    "attributes": { "team": "research", "level": 3, "languages": ["en", "fr"] },
    "roles": ["developer"],
}))]
pub struct NewUser {
    /// The e-mail address that the user signs in with, unique in the organization. Case does not matter.
    pub(super) email: Email,
    /// The user's display name.
    #[schema(value_type = Name)]
    pub(super) name: String,
    /// The first password. Without one the user can sign in at an identity provider only. Only owners give one where the
    /// organization has an identity connection in use: it would be a way past it.
    #[schema(value_type = Option<String>, format = Password, min_length = 8, max_length = 128)]
    pub(super) password: Option<SecretString>,
    /// What policies see of the user as `principal.attributes`; nothing if absent.
    #[serde(default)]
    #[schema(value_type = Attributes)]
    pub(super) attributes: Map<String, Value>,
    /// Roles that the user is to hold in the whole organization; none if absent.
    #[serde(default)]
    pub(super) roles: Vec<Role>,
}

/// A change of a user: what is absent or null stays.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "name": "Ada King", "attributes": { "team": "engines" } }))]
pub struct UserChange {
    /// The user's new display name.
    #[schema(value_type = Option<Name>)]
    pub(super) name: Option<String>,
    /// Whether the user may sign in from now on. Disabling ends the user's sessions.
    pub(super) active: Option<bool>,
    /// The user's new password. The user's sessions end, but for the one that changes its own user's password. The first
    /// password of somebody who signs in elsewhere is set by another owner; so is any password of somebody who is linked to an
    /// identity provider.
    #[schema(value_type = Option<String>, format = Password, min_length = 8, max_length = 128)]
    pub(super) password: Option<SecretString>,
    /// The user's password so far; needed by those who change their own, and ignored otherwise.
    #[schema(value_type = Option<String>, format = Password)]
    pub(super) current_password: Option<SecretString>,
    /// Attributes that replace all those that the user has.
    #[schema(value_type = Option<Attributes>)]
    pub(super) attributes: Option<Map<String, Value>>,
}

/// A property of a user that a change names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = UserProperty)]
pub enum Property {
    /// Their name.
    Name,
    /// Whether they may sign in.
    Active,
    /// Their password.
    Password,
    /// Their attributes.
    Attributes,
}

impl UserChange {
    pub(super) fn properties(&self) -> Vec<Property> {
        let mut properties = Vec::new();
        properties.extend(self.name.as_ref().map(|_| Property::Name));
        properties.extend(self.active.map(|_| Property::Active));
        properties.extend(self.password.as_ref().map(|_| Property::Password));
        properties.extend(self.attributes.as_ref().map(|_| Property::Attributes));
        properties
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use utoipa::PartialSchema;

    use super::*;
    use crate::identity::password;

    /// What the document says of new passwords is what [`password::check`] accepts.
    #[test]
    fn the_document_says_how_long_a_password_is() {
        for schema in [NewUser::schema(), UserChange::schema()] {
            let documented = &serde_json::to_value(schema).unwrap()["properties"]["password"];
            let (least, most) = (password::LENGTH.start(), password::LENGTH.end());
            assert_eq!((&documented["minLength"], &documented["maxLength"]), (&json!(least), &json!(most)));
        }
    }
}
