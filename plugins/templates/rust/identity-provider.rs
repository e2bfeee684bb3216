//! {{title}}: signs people in with OpenID Connect.

use kaizen_plugin::identity::{Grant, Identity, Protocol};
use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::{Call, IdentityProvider, Manifest, Plugin, Result, SecretSlot, Url};

/// What a connection has to fill in. Field names, types and documentation become the form.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The issuer, exactly as in its tokens.
    #[schemars(extend("format" = "uri"))]
    issuer: String,
    /// This server's id at the issuer; the server itself sends it.
    #[expect(dead_code, reason = "the server reads it; it is here for the schema")]
    client_id: String,
    /// The claim with the person's groups.
    #[serde(default = "groups")]
    groups_claim: String,
}

fn groups() -> String {
    "groups".to_owned()
}

struct Provider;

impl Plugin for Provider {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "{{name}}",
        version: env!("CARGO_PKG_VERSION"),
        title: "{{title}}",
        description: "Signs people in with OpenID Connect.",
        // Only the server sends it, to the token endpoint.
        secrets: &[SecretSlot {
            name: "client-secret",
            description: "This server's secret at the issuer.",
            hosts: &[],
        }],
        // It asks for nothing: the server runs the protocol.
        capabilities: &[],
    };
}

impl IdentityProvider for Provider {
    /// Which protocol to run, against whom.
    fn begin(call: &Call<Config>) -> Result<Protocol> {
        Url::parse(&call.config.issuer)?;
        Ok(Protocol::Oidc {
            issuer: call.config.issuer.clone(),
            scopes: ["openid", "email", "profile"].map(str::to_owned).to_vec(),
            parameters: Vec::new(),
        })
    }

    /// Who signed in. The claims are verified.
    fn identify(call: &Call<Config>, grant: &Grant) -> Result<Identity> {
        // An address counts as verified only where the document that has it says so.
        let (email, email_verified) = grant.email("email").unzip();
        Ok(Identity {
            subject: grant.subject()?.to_owned(),
            email,
            email_verified: email_verified.unwrap_or_default(),
            name: grant.name("name"),
            groups: grant.groups(&call.config.groups_claim)?,
            attributes: Default::default(),
        })
    }
}

kaizen_plugin::identity_provider!(Provider);

#[cfg(test)]
mod tests {
    use kaizen_plugin::serde_json::{Value, from_value, json};
    use kaizen_plugin::testing;

    use super::*;

    #[test]
    fn an_address_is_verified_only_where_its_own_document_says_so() {
        let call = testing::call::<Provider>(r#"{"issuer": "https://id.example.com", "client_id": "kaizen"}"#);
        let verified = |claims: Value, userinfo: Value| {
            let grant = Grant { claims: from_value(claims).unwrap(), userinfo: from_value(userinfo).unwrap() };
            Provider::identify(&call, &grant).unwrap().email_verified
        };
        assert!(verified(json!({ "sub": "1", "email": "a@example.com", "email_verified": true }), json!({})));
        let userinfo = json!({ "sub": "1", "email": "b@example.com", "email_verified": true });
        assert!(!verified(json!({ "sub": "1", "email": "a@example.com" }), userinfo));
    }
}
