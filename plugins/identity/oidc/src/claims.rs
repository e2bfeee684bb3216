//! From verified claims to an identity.

use std::collections::BTreeMap;

use kaizen_plugin::identity::{Grant, Identity, lookup};
use kaizen_plugin::{Error, Result, log};
use serde_json::{Map, Value};

use crate::Config;

/// Who the claims are about.
pub fn identity(config: &Config, grant: &Grant) -> Result<Identity> {
    let Some(subject) = grant.claims.get("sub").and_then(Value::as_str).filter(|subject| !subject.is_empty()) else {
        return Err(Error::Rejected("the provider's ID token has no `sub`".to_owned()));
    };
    // OpenID Connect Core 1.0, section 5.3.2: userinfo about someone else must not be used.
    let stranger = grant.userinfo.get("sub").is_some_and(|other| other.as_str() != Some(subject));
    if stranger {
        return Err(Error::Rejected("the provider's userinfo is about another person than its ID token".to_owned()));
    }
    let (email, email_verified) = email(config, grant);
    Ok(Identity {
        subject: subject.to_owned(),
        email,
        email_verified,
        name: name(config, grant),
        groups: groups(config, grant),
        attributes: attributes(config, grant),
    })
}

/// The address, and whether the same document says that it was verified: a `true` from one must not cover an address
/// from another.
fn email(config: &Config, grant: &Grant) -> (Option<String>, bool) {
    let from = |claims: &Map<String, Value>| {
        let email = text(lookup(claims, &config.email_claim))?;
        // Some providers (Amazon Cognito) send the word instead of the boolean. `email_verified` speaks of `email`
        // only.
        let said = matches!(claims.get("email_verified"), Some(Value::Bool(true)))
            || claims.get("email_verified").and_then(Value::as_str) == Some("true");
        Some((email, config.trust_email || (said && config.email_claim == "email")))
    };
    match from(&grant.claims).or_else(|| from(&grant.userinfo)) {
        Some((email, verified)) => (Some(email), verified),
        None => (None, false),
    }
}

fn name(config: &Config, grant: &Grant) -> Option<String> {
    let claim = |name: &str| text(grant.claim(name));
    claim(&config.name_claim)
        .or_else(|| match (claim("given_name"), claim("family_name")) {
            (Some(given), Some(family)) => Some(format!("{given} {family}")),
            (given, family) => given.or(family),
        })
        .or_else(|| claim("preferred_username"))
}

/// A list of texts, or one text. Anything else gives no group, and says so: silence would look like a person without
/// any.
fn groups(config: &Config, grant: &Grant) -> Vec<String> {
    match grant.claim(&config.groups_claim) {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => {
            let groups: Vec<String> = many.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            if groups.len() < many.len() {
                log::warn!("`{}` has {} entries that are not texts", config.groups_claim, many.len() - groups.len());
            }
            groups
        }
        Some(_) => {
            log::warn!("`{}` is neither a list nor a text: no groups taken", config.groups_claim);
            Vec::new()
        }
    }
}

fn attributes(config: &Config, grant: &Grant) -> BTreeMap<String, Value> {
    config
        .attributes
        .iter()
        .filter_map(|claim| {
            let name = if claim.starts_with('/') { claim.rsplit('/').next().unwrap_or(claim) } else { claim };
            Some((name.to_owned(), grant.claim(claim)?.clone()))
        })
        .collect()
}

fn text(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
    fn an_address_is_verified_only_where_its_own_document_says_so() {
        let plain = config(json!({}));
        for (claims, userinfo, email, verified) in [
            (
                json!({"sub": "1", "email": "a@x"}),
                json!({"sub": "1", "email": "b@x", "email_verified": true}),
                "a@x",
                false,
            ),
            (json!({"sub": "1", "email_verified": true}), json!({"sub": "1", "email": "b@x"}), "b@x", false),
            (json!({"sub": "1"}), json!({"sub": "1", "email": "b@x", "email_verified": true}), "b@x", true),
            (json!({"sub": "1", "email": "a@x", "email_verified": "true"}), json!({}), "a@x", true),
            (json!({"sub": "1", "email": "a@x", "email_verified": "false"}), json!({}), "a@x", false),
            (json!({"sub": "1", "email": "a@x", "email_verified": 1}), json!({}), "a@x", false),
        ] {
            let identity = identity(&plain, &grant(claims.clone(), userinfo)).unwrap();
            assert_eq!((identity.email.as_deref(), identity.email_verified), (Some(email), verified), "{claims}");
        }
        let upn = grant(json!({"sub": "1", "upn": "a@x", "email": "b@x", "email_verified": true}), json!({}));
        assert!(!identity(&config(json!({"email_claim": "upn"})), &upn).unwrap().email_verified);
        assert!(identity(&config(json!({"email_claim": "upn", "trust_email": true})), &upn).unwrap().email_verified);
    }

    #[test]
    fn userinfo_of_another_person_is_refused() {
        let grant = grant(json!({"sub": "1"}), json!({"sub": "2", "email": "admin@x"}));
        assert!(matches!(identity(&config(json!({})), &grant), Err(Error::Rejected(_))));
    }

    #[test]
    fn a_token_without_subject_is_refused() {
        for claims in [json!({}), json!({"sub": ""}), json!({"sub": 7})] {
            assert!(identity(&config(json!({})), &grant(claims, json!({}))).is_err());
        }
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

    #[test]
    fn a_name_is_put_together_where_there_is_none() {
        let named = |claims| identity(&config(json!({})), &grant(claims, json!({}))).unwrap().name;
        assert_eq!(named(json!({"sub": "1", "given_name": "Ada", "family_name": "L"})).as_deref(), Some("Ada L"));
        assert_eq!(named(json!({"sub": "1", "name": " ", "preferred_username": "ada"})).as_deref(), Some("ada"));
        assert_eq!(named(json!({"sub": "1"})), None);
    }
}
