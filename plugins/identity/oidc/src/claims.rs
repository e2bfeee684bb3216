//! From verified claims to an identity.

use kaizen_plugin::Result;
use kaizen_plugin::identity::{Grant, Identity};

use crate::Config;

/// Who the claims are about.
pub fn identity(config: &Config, grant: &Grant) -> Result<Identity> {
    let subject = grant.subject()?.to_owned();
    let (email, email_verified) = match grant.email(&config.email_claim) {
        Some((email, verified)) => (Some(email), verified || config.trust_email),
        None => (None, false),
    };
    Ok(Identity {
        subject,
        email,
        email_verified,
        name: grant.name(&config.name_claim),
        groups: grant.groups(&config.groups_claim),
        attributes: grant.attributes(&config.attributes),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(more: Value) -> Config {
        let mut config = json!({"issuer": "https://id.example.com", "client_id": "k"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(config).unwrap()
    }

    fn grant(claims: Value, userinfo: Value) -> Grant {
        Grant { claims: claims.as_object().unwrap().clone(), userinfo: userinfo.as_object().unwrap().clone() }
    }

    #[test]
    fn claims_become_an_identity() {
        let claims = json!({
            "sub": "248", "email": "a@example.com", "email_verified": true, "name": "Ada", "groups": ["dev", 7, "ops"],
            "realm": {"cost_center": 12}, "department": "R&D"
        });
        let config = config(json!({"attributes": ["department", "/realm/cost_center", "absent"]}));
        let identity = identity(&config, &grant(claims, json!({"sub": "248", "name": "Other"}))).unwrap();
        assert_eq!(identity.subject, "248");
        assert_eq!((identity.email.as_deref(), identity.email_verified), (Some("a@example.com"), true));
        assert_eq!(identity.name.as_deref(), Some("Ada"));
        assert_eq!(identity.groups, ["dev", "ops"]);
        assert_eq!(json!(identity.attributes), json!({"department": "R&D", "cost_center": 12}));
    }

    #[test]
    fn an_address_from_another_claim_is_verified_only_where_the_operator_vouches() {
        let upn = grant(json!({"sub": "1", "upn": "a@x", "email": "b@x", "email_verified": true}), json!({}));
        assert!(!identity(&config(json!({"email_claim": "upn"})), &upn).unwrap().email_verified);
        assert!(identity(&config(json!({"email_claim": "upn", "trust_email": true})), &upn).unwrap().email_verified);
    }

    #[test]
    fn groups_come_in_several_shapes() {
        let nested = config(json!({"groups_claim": "/realm_access/roles"}));
        let claims = json!({"sub": "1", "realm_access": {"roles": ["a"]}, "groups": "b"});
        assert_eq!(identity(&nested, &grant(claims.clone(), json!({}))).unwrap().groups, ["a"]);
        assert_eq!(identity(&config(json!({})), &grant(claims, json!({}))).unwrap().groups, ["b"]);
        assert!(
            identity(&config(json!({})), &grant(json!({"sub": "1", "groups": {"a": 1}}), json!({})))
                .unwrap()
                .groups
                .is_empty()
        );
    }
}
