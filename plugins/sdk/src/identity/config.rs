//! What the configurations of most identity providers have in common: `#[serde(flatten)]` it into your own.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Grant, Identity};
use crate::Result;

/// This server at the provider, and what newcomers may do. All but `parameters` is the server's to use.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Client {
    /// The client id that the provider gave this application.
    #[schemars(length(min = 1, max = 512))]
    pub client_id: String,
    /// The role of people who sign in for the first time and are in none of the groups of `group_roles`; without one they
    /// are refused until somebody adds them.
    #[serde(default)]
    pub default_role: Option<Role>,
    /// The role that each of the provider's groups gives people who sign in for the first time.
    #[serde(default)]
    pub group_roles: BTreeMap<String, Role>,
    /// Claims that everybody who signs in must have: each with its value, or with a list of values of which it has one. The
    /// name of a claim that starts with `/` is a JSON Pointer. OpenID Connect only.
    #[serde(default)]
    pub required_claims: BTreeMap<String, Required>,
    /// Extra parameters of the authorization request, such as `prompt`. Those of the protocol itself are refused.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}

impl Client {
    /// The extra parameters as [`Protocol`](super::Protocol) takes them.
    pub fn parameters(&self) -> Vec<(String, String)> {
        self.parameters.clone().into_iter().collect()
    }
}

/// What a claim must be.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Required {
    /// Exactly this.
    One(RequiredValue),
    /// One of these.
    OneOf(Vec<RequiredValue>),
}

/// A value of a claim.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RequiredValue {
    /// True or false.
    Flag(bool),
    /// A whole number.
    Number(i64),
    /// A text, letter by letter.
    Text(String),
}

/// A role that a connection can give people who sign in for the first time. Ownership is given by owners alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything but what only owners may do.
    Admin,
    /// Builds and deploys agents.
    Developer,
    /// Reads agents and deployments.
    Viewer,
    /// Reads everything that is configured, and the audit trail.
    Auditor,
}

/// What the claims of an OpenID Connect provider mean.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Claims {
    /// The claim that holds a person's groups, or a JSON Pointer to it, such as `/realm_access/roles`.
    #[serde(default = "groups")]
    #[schemars(length(min = 1, max = 256))]
    pub groups_claim: String,
    /// The claim that holds a person's name, or a JSON Pointer to it.
    #[serde(default = "name")]
    #[schemars(length(min = 1, max = 256))]
    pub name_claim: String,
    /// The claim that holds a person's mail address, or a JSON Pointer to it.
    #[serde(default = "email")]
    #[schemars(length(min = 1, max = 256))]
    pub email_claim: String,
    /// Take mail addresses for verified even though the provider doesn't say so with `email_verified`. Set it only
    /// where people can't choose their address themselves.
    #[serde(default)]
    pub trust_email: bool,
    /// Claims that policies may use as `principal.attributes`. A JSON Pointer is called by its last part.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub attributes: Vec<String>,
}

fn groups() -> String {
    "groups".to_owned()
}

fn name() -> String {
    "name".to_owned()
}

fn email() -> String {
    "email".to_owned()
}

impl Claims {
    /// Who the claims are about.
    ///
    /// # Errors
    /// As [`Grant::subject`] and [`Grant::groups`].
    pub fn identity(&self, grant: &Grant) -> Result<Identity> {
        let subject = grant.subject()?.to_owned();
        let (email, email_verified) = match grant.email(&self.email_claim) {
            Some((email, verified)) => (Some(email), verified || self.trust_email),
            None => (None, false),
        };
        Ok(Identity {
            subject,
            email,
            email_verified,
            name: grant.name(&self.name_claim),
            groups: grant.groups(&self.groups_claim)?,
            attributes: grant.attributes(&self.attributes),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A configuration of one's own.
    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its schema and what it refuses are looked at")]
    struct Config {
        /// Its own.
        issuer: String,
        #[serde(flatten)]
        client: Client,
        #[serde(flatten)]
        claims: Claims,
    }

    fn claims(config: Value) -> Claims {
        serde_json::from_value(config).unwrap()
    }

    fn grant(claims: Value, userinfo: Value) -> Grant {
        Grant { claims: claims.as_object().unwrap().clone(), userinfo: userinfo.as_object().unwrap().clone() }
    }

    #[test]
    fn flattened_settings_are_those_of_the_configuration_itself() {
        let schema: Value = serde_json::from_str(&crate::manifest::schema::<Config>()).unwrap();
        assert_eq!(schema["required"], json!(["issuer", "client_id"]));
        assert_eq!(schema["additionalProperties"], false, "{schema}");
        assert_eq!(schema["properties"]["client_id"]["maxLength"], 512);
        assert_eq!(schema["properties"]["groups_claim"]["default"], "groups");
        let read = |config: Value| serde_json::from_value::<Config>(config);
        let good = json!({ "issuer": "i", "client_id": "k", "group_roles": { "a": "admin" }, "trust_email": true });
        assert!(read(good.clone()).is_ok());
        for (name, value) in [("stranger", json!(1)), ("default_role", json!("owner")), ("client_id", json!(null))] {
            let mut bad = good.clone();
            bad[name] = value;
            assert!(read(bad).is_err(), "{name}");
        }
    }

    #[test]
    fn claims_become_an_identity() {
        let said = json!({
            "sub": "248", "email": "a@example.com", "email_verified": true, "name": "Ada", "groups": ["dev", 7, "ops"],
            "realm": {"cost_center": 12}, "department": "R&D"
        });
        let claims = claims(json!({"attributes": ["department", "/realm/cost_center", "absent"]}));
        let identity = claims.identity(&grant(said, json!({"sub": "248", "name": "Other"}))).unwrap();
        assert_eq!(identity.subject, "248");
        assert_eq!((identity.email.as_deref(), identity.email_verified), (Some("a@example.com"), true));
        assert_eq!(identity.name.as_deref(), Some("Ada"));
        assert_eq!(identity.groups, ["dev", "ops"]);
        assert_eq!(json!(identity.attributes), json!({"department": "R&D", "cost_center": 12, "absent": null}));

        // A thin ID token leaves the rest to userinfo.
        let thin = grant(json!({"sub": "1"}), json!({"sub": "1", "groups": ["Ops"], "email": "a@example.com"}));
        let identity = claims.identity(&thin).unwrap();
        assert_eq!((identity.groups, identity.email_verified), (vec!["Ops".to_owned()], false));
    }

    #[test]
    fn an_address_from_another_claim_is_verified_only_where_the_operator_vouches() {
        let upn = grant(json!({"sub": "1", "upn": "a@x", "email": "b@x", "email_verified": true}), json!({}));
        let verified = |config| claims(config).identity(&upn).unwrap().email_verified;
        assert!(!verified(json!({"email_claim": "upn"})));
        assert!(verified(json!({"email_claim": "upn", "trust_email": true})));
    }

    #[test]
    fn groups_come_in_several_shapes() {
        let groups = |config, said| claims(config).identity(&grant(said, json!({}))).unwrap().groups;
        let said = json!({"sub": "1", "realm_access": {"roles": ["a"]}, "groups": "b"});
        assert_eq!(groups(json!({"groups_claim": "/realm_access/roles"}), said.clone()), ["a"]);
        assert_eq!(groups(json!({}), said), ["b"]);
        assert!(groups(json!({}), json!({"sub": "1", "groups": {"a": 1}})).is_empty());
    }

    #[test]
    fn a_person_nobody_can_be_told_from_is_refused() {
        for (said, userinfo) in [(json!({}), json!({})), (json!({"sub": "1"}), json!({"sub": "2"}))] {
            assert!(matches!(claims(json!({})).identity(&grant(said, userinfo)), Err(crate::Error::Rejected(_))));
        }
    }
}
