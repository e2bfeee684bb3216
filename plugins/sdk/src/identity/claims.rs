//! What most providers' claims have in common.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Grant, lookup};
use crate::{Error, Result};

/// More groups of one person than this the server does not take.
pub const MOST_GROUPS: usize = 2000;

impl Grant {
    /// The ID token's `sub`.
    ///
    /// # Errors
    /// [`Error::Rejected`] without one, and where userinfo is about somebody else (OpenID Connect Core 1.0, section 5.3.2).
    pub fn subject(&self) -> Result<&str> {
        let subject = self.claims.get("sub").and_then(Value::as_str).filter(|subject| !subject.is_empty());
        let Some(subject) = subject else {
            return Err(Error::Rejected("the provider's ID token has no `sub`".to_owned()));
        };
        if self.userinfo.get("sub").is_some_and(|other| other.as_str() != Some(subject)) {
            return Err(Error::Rejected(
                "the provider's userinfo is about another person than its ID token".to_owned(),
            ));
        }
        Ok(subject)
    }

    /// The mail address in this claim, and whether the same document says by `email_verified` that it was verified: a
    /// `true` from one must not cover an address from another. `email_verified` speaks of `email` only.
    pub fn email(&self, claim: &str) -> Option<(String, bool)> {
        let from = |claims: &Map<String, Value>| {
            let email = text(lookup(claims, claim))?;
            // Some providers (Amazon Cognito) send the word instead of the boolean.
            let said = matches!(claims.get("email_verified"), Some(Value::Bool(true)))
                || claims.get("email_verified").and_then(Value::as_str) == Some("true");
            Some((email, said && claim == "email"))
        };
        from(&self.claims).or_else(|| from(&self.userinfo))
    }

    /// The name in this claim; where there is none, what `given_name`, `family_name` or `preferred_username` give.
    pub fn name(&self, claim: &str) -> Option<String> {
        let claim_text = |name: &str| text(self.claim(name));
        claim_text(claim)
            .or_else(|| match (claim_text("given_name"), claim_text("family_name")) {
                (Some(given), Some(family)) => Some(format!("{given} {family}")),
                (given, family) => given.or(family),
            })
            .or_else(|| claim_text("preferred_username"))
    }

    /// The groups in this claim: a list of texts, or one text. Anything else gives no group, and says so in the log:
    /// silence would look like a person without any.
    ///
    /// # Errors
    /// [`Error::Rejected`] where the provider says that it left them out (`_claim_names`, OpenID Connect Core 1.0, section
    /// 5.6.2): without them a person would have other rights.
    pub fn groups(&self, claim: &str) -> Result<Vec<String>> {
        let elsewhere =
            |claims: &Map<String, Value>| claims.get("_claim_names").is_some_and(|names| names.get(claim).is_some());
        Ok(match self.claim(claim) {
            None if elsewhere(&self.claims) || elsewhere(&self.userinfo) => {
                return Err(Error::Rejected(format!(
                    "the provider left `{claim}` out of its answer, as it does where they are too many: let it send only those \
                     assigned to this application (at Microsoft Entra ID the plugin `entra` fetches them all)"
                )));
            }
            None => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) => {
                let groups: Vec<String> = many.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                if groups.len() < many.len() {
                    log::warn!("`{claim}` has {} entries that are not texts", many.len() - groups.len());
                }
                groups
            }
            Some(_) => {
                log::warn!("`{claim}` is neither a list nor a text: no groups taken");
                Vec::new()
            }
        })
    }

    /// These claims, for [`Identity::attributes`](super::Identity::attributes). A JSON Pointer is called by its last
    /// part. One that the provider does not send (any more) is `null`: Microsoft Entra ID, for one, leaves `roles` out for
    /// people without any.
    pub fn attributes(&self, claims: &[String]) -> BTreeMap<String, Value> {
        let mut attributes = BTreeMap::new();
        for claim in claims {
            let name = if claim.starts_with('/') { claim.rsplit('/').next().unwrap_or(claim) } else { claim };
            let known = attributes.entry(name.to_owned()).or_default();
            if let Some(value) = self.claim(claim) {
                *known = value.clone();
            }
        }
        attributes
    }
}

/// A text that is not blank, trimmed.
pub fn text(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn grant(claims: Value, userinfo: Value) -> Grant {
        Grant { claims: claims.as_object().unwrap().clone(), userinfo: userinfo.as_object().unwrap().clone() }
    }

    #[test]
    fn an_address_is_verified_only_where_its_own_document_says_so() {
        for (claims, userinfo, email, verified) in [
            (json!({"email": "a@x"}), json!({"email": "b@x", "email_verified": true}), "a@x", false),
            (json!({"email_verified": true}), json!({"email": "b@x"}), "b@x", false),
            (json!({}), json!({"email": "b@x", "email_verified": true}), "b@x", true),
            (json!({"email": "a@x", "email_verified": "true"}), json!({}), "a@x", true),
            (json!({"email": "a@x", "email_verified": "false"}), json!({}), "a@x", false),
            (json!({"email": "a@x", "email_verified": 1}), json!({}), "a@x", false),
        ] {
            let found = grant(claims.clone(), userinfo).email("email");
            assert_eq!(found, Some((email.to_owned(), verified)), "{claims}");
        }
        let upn = grant(json!({"upn": "a@x", "email": "b@x", "email_verified": true}), json!({}));
        assert_eq!(upn.email("upn"), Some(("a@x".to_owned(), false)));
    }

    #[test]
    fn the_subject_is_the_tokens_and_userinfo_is_about_the_same_person() {
        assert_eq!(grant(json!({"sub": "1"}), json!({"sub": "1"})).subject(), Ok("1"));
        assert_eq!(grant(json!({"sub": "1"}), json!({})).subject(), Ok("1"));
        for (claims, userinfo) in [
            (json!({"sub": "1"}), json!({"sub": "2", "email": "admin@x"})),
            (json!({}), json!({"sub": "1"})),
            (json!({"sub": ""}), json!({})),
            (json!({"sub": 7}), json!({})),
        ] {
            assert!(matches!(grant(claims, userinfo).subject(), Err(Error::Rejected(_))));
        }
    }

    #[test]
    fn groups_that_were_left_out_are_not_taken_for_none() {
        let names = json!({"_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": "https://x/"}}});
        for grant in [grant(names.clone(), json!({})), grant(json!({}), names)] {
            assert!(matches!(grant.groups("groups"), Err(Error::Rejected(why)) if why.contains("`groups`")));
            assert_eq!(grant.groups("roles"), Ok(Vec::new()));
        }
    }

    #[test]
    fn a_name_is_put_together_where_there_is_none() {
        let named = |claims| grant(claims, json!({})).name("name");
        assert_eq!(named(json!({"given_name": "Ada", "family_name": "L"})).as_deref(), Some("Ada L"));
        assert_eq!(named(json!({"name": " ", "preferred_username": "ada"})).as_deref(), Some("ada"));
        assert_eq!(named(json!({"sub": "1"})), None);
    }
}
