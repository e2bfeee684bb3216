//! The bodies of the routes of sign-in: what is sent, and what is handed out.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::{
    domain::{
        email::Email,
        id::{OrganizationId, PolicyVersionId, WorkspaceId},
        role::Role,
        user::User,
    },
    store::signing_keys::PublicJwk,
};

/// An organization by id and name.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(example = json!({ "id": "019d0e2f-6f39-7a10-9c3d-2b4f6a8c0e1d", "name": "Aurora Labs" }))]
pub struct OrganizationSummary {
    /// The id of the organization; to sign in there, send it as `organization_id`.
    pub id: OrganizationId,
    /// The organization's display name.
    pub name: String,
}

/// A person who signs in by password.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "email": "ada@example.com", "password": "violet harbour lamp 41" }))]
pub struct Login {
    /// The e-mail address of the user. Case does not matter.
    pub(super) email: Email,
    /// The password of the user.
    #[schema(value_type = String, format = Password)]
    pub(super) password: SecretString,
    /// The organization to sign in at, for those whom several know. If absent or null, the password is tried in a few of the
    /// organizations that know the address.
    pub(super) organization_id: Option<OrganizationId>,
}

/// A refresh token to exchange.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TokenRefresh, example = json!({ "refresh_token": "kzr_an0example0of0a0refresh0token0for0nobody0AA" }))]
pub struct Refresh {
    /// The refresh token of the session, as it was handed out last.
    #[schema(value_type = String, format = Password, pattern = "^kzr_[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$")]
    pub(super) refresh_token: SecretString,
}

/// The tokens of a session (RFC 6749, section 5.1).
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(example = json!({
    "access_token": "eyJhbGciOiJSUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJhdWQiOiJrYWl6ZW4ifQ.c2lnbmF0dXJl",
    "token_type": "Bearer",
    "expires_in": 900,
    "refresh_token": "kzr_an0example0of0a0refresh0token0for0nobody0AA",
}))]
pub struct Tokens {
    /// The access token: a JWT to send as `Authorization: Bearer`.
    pub(super) access_token: String,
    /// The type of the access token (RFC 6750).
    pub(super) token_type: TokenType,
    /// Seconds from now until the access token expires.
    #[schema(minimum = 1)]
    pub(super) expires_in: i64,
    /// The refresh token, good for one exchange at `/api/v1/auth/refresh`.
    pub(super) refresh_token: String,
}

/// How an access token is sent (RFC 6750).
#[derive(Debug, Clone, Copy, Serialize, utoipa::ToSchema)]
pub enum TokenType {
    /// In the header `Authorization: Bearer`.
    Bearer,
}

/// A role that a user holds.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(example = json!({ "role": "developer", "workspace_id": null }))]
pub struct HeldRole {
    /// The role that is held.
    pub(super) role: Role,
    /// The workspace that the role is held in; null: the whole organization.
    #[schema(required = true)]
    pub(super) workspace_id: Option<WorkspaceId>,
}

/// The signed-in user.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = CurrentUser, example = json!({
    "user": {
        "id": "019d0e2f-6f3a-7c41-8b52-9d0e1f2a3b4c",
        "organization_id": "019d0e2f-6f39-7a10-9c3d-2b4f6a8c0e1d",
        "email": "ada@example.com",
        "name": "Ada Lovelace",
        "active": true,
        "platform_administrator": false,
        "has_password": true,
        "attributes": { "team": "research" },
        "created_at": "2026-11-27T09:30:00.000000Z",
        "updated_at": "2026-11-27T09:30:00.000000Z",
    },
    "organization": { "id": "019d0e2f-6f39-7a10-9c3d-2b4f6a8c0e1d", "name": "Aurora Labs" },
    "roles": [{ "role": "developer", "workspace_id": null }],
    "policy_version_id": null,
}))]
pub struct Me {
    /// The user who sends the request.
    pub(super) user: User,
    /// The organization that the user is signed in at.
    pub(super) organization: OrganizationSummary,
    /// The roles that the user holds, in the organization and in its workspaces.
    pub(super) roles: Vec<HeldRole>,
    /// The version of the organization's policy set that is in force; null: the platform's policies only.
    #[schema(required = true)]
    pub(super) policy_version_id: Option<PolicyVersionId>,
}

/// A JSON Web Key Set (RFC 7517).
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = JsonWebKeySet)]
pub struct KeySet {
    /// The public keys, newest first.
    pub(super) keys: Vec<PublicJwk>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use utoipa::PartialSchema;

    use super::*;
    use crate::{
        clock::Clock,
        identity::{secret::Opaque, session::REFRESH_PREFIX},
    };

    #[test]
    fn the_document_describes_refresh_tokens_as_they_are_handed_out() {
        use secrecy::ExposeSecret;

        let document = serde_json::to_value(Refresh::schema()).unwrap();
        let schema = jsonschema::validator_for(&document).unwrap();
        let allows = |token: &str| schema.is_valid(&json!({ "refresh_token": token }));
        let example = document["example"]["refresh_token"].as_str().unwrap().to_owned();
        let clock = Clock::system();
        let token = Opaque::random(&clock).reveal(REFRESH_PREFIX);
        for good in [example.as_str(), token.expose_secret()] {
            assert!(Opaque::parse(REFRESH_PREFIX, good).is_some() && allows(good), "{good}");
        }
        // The last character has two bits that are none of the token's.
        for bad in [format!("{example}A"), example.replace("kzr_", ""), format!("{}B", &example[..example.len() - 1])] {
            assert!(Opaque::parse(REFRESH_PREFIX, &bad).is_none() && !allows(&bad), "{bad}");
        }
    }
}
