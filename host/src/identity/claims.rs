//! Claims that a connection requires: who signs in at a provider that others share has to belong to the organization.
//!
//! `required_claims` of the configuration says which claim must have which value: `{"hd": "example.com"}`, or one of several:
//! `{"department": ["R&D", "IT"]}`. A claim that is a list has it if one of its entries is it. A name that starts with `/` is a
//! JSON Pointer (RFC 6901). `parameters.hd`, with which Google shows accounts of one domain first, is such a requirement too:
//! by itself it is a hint, which the browser can take out of the request.

use serde_json::Value;
use url::Url;

/// Claims that a connection may require at the most, and values of each.
const MOST: usize = 32;
/// Where anybody can have an account. A newcomer is no member by having one.
const SHARED: [&str; 14] = [
    "access.line.me",
    "accounts.google.com",
    "api.login.yahoo.com",
    "appleid.apple.com",
    "discord.com",
    "github.com",
    "gitlab.com",
    "id.twitch.tv",
    "login.salesforce.com",
    "orcid.org",
    "slack.com",
    "www.amazon.com",
    "www.facebook.com",
    "www.linkedin.com",
];
/// Microsoft's sign-in, where the first part of the path says which directories' people come in; these are everybody's.
const MICROSOFT: &str = "login.microsoftonline.com";
const EVERY_DIRECTORY: [&str; 4] = ["common", "consumers", "organizations", "9188040d-6c67-4c5b-b112-36a304b66dad"];

/// What one claim must be.
#[derive(Debug, Clone, PartialEq)]
enum Wanted {
    /// Any text that is not empty.
    Present,
    /// One of these.
    OneOf(Vec<Value>),
}

/// What a connection requires.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RequiredClaims(Vec<(String, Wanted)>);

impl RequiredClaims {
    /// Reads them from a connection's configuration and the parameters of its authorization request.
    ///
    /// # Errors
    /// A sentence that names the claim that cannot be required so.
    pub fn new(config: &Value, parameters: &[(String, String)]) -> Result<Self, String> {
        let mut required = Vec::new();
        if let Some(value) = config.get("required_claims").filter(|value| !value.is_null()) {
            let members = value.as_object().filter(|members| members.len() <= MOST);
            let members =
                members.ok_or_else(|| format!("`required_claims` must be an object of at most {MOST} claims"))?;
            for (name, value) in members {
                let values = match value {
                    Value::Array(values) => values.clone(),
                    value => vec![value.clone()],
                };
                let good = |value: &Value| value.is_string() || value.is_boolean() || value.is_i64();
                if name.is_empty() || values.is_empty() || values.len() > MOST || !values.iter().all(good) {
                    return Err(format!(
                        "`required_claims`: `{}` must be a text, a whole number, true or false, or a list of up to {MOST} of them",
                        super::code::brief(name)
                    ));
                }
                required.push((name.clone(), Wanted::OneOf(values)));
            }
        }
        if let Some((_, domain)) = parameters.iter().find(|(name, _)| name == "hd") {
            let wanted = if domain == "*" { Wanted::Present } else { Wanted::OneOf(vec![domain.clone().into()]) };
            required.push(("hd".to_owned(), wanted));
        }
        Ok(Self(required))
    }

    /// Whether nothing is required.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first claim that is not as required, looked for in the ID token and, where it has none of that name, in userinfo.
    pub fn missing(&self, claims: &Value, userinfo: Option<&Value>) -> Option<&str> {
        let holds = |(name, wanted): &&(String, Wanted)| {
            let found = lookup(claims, name).or_else(|| lookup(userinfo?, name));
            match wanted {
                Wanted::Present => found.and_then(Value::as_str).is_some_and(|text| !text.is_empty()),
                Wanted::OneOf(values) => match found {
                    Some(Value::Array(found)) => found.iter().any(|found| values.contains(found)),
                    Some(found) => values.contains(found),
                    None => false,
                },
            }
        };
        self.0.iter().find(|one| !holds(one)).map(|(name, _)| name.as_str())
    }
}

/// A claim by name or JSON Pointer; `null` counts as absent.
fn lookup<'a>(claims: &'a Value, name: &str) -> Option<&'a Value> {
    let found = if name.starts_with('/') { claims.pointer(name) } else { claims.get(name) };
    found.filter(|value| !value.is_null())
}

/// Why `default_role` would let everybody in: anybody can have an account at this issuer, and nothing says who of them belongs
/// to the organization. A plugin of OAuth 2 says so by `organizations`.
pub fn open_to_everybody(issuer: &str, config: &Value, required: &RequiredClaims) -> Option<String> {
    config.get("default_role").and_then(Value::as_str)?;
    let organizations = config.get("organizations").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if !required.is_empty() || organizations {
        return None;
    }
    let url = Url::parse(issuer).ok()?;
    let host = url.host_str()?;
    let directory = url.path_segments().and_then(|mut parts| parts.next()).unwrap_or_default();
    let shared = SHARED.contains(&host)
        || (host == MICROSOFT && EVERY_DIRECTORY.iter().any(|every| directory.eq_ignore_ascii_case(every)));
    shared.then(|| {
        format!(
            "`default_role` would give everybody a role who has an account at {host}: say who belongs to you, by \
             `required_claims` such as {{\"hd\": \"example.com\"}} or by `organizations`, or leave `default_role` out"
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_exactly_what_is_required() {
        let config = json!({ "required_claims": {
            "hd": "acme.test", "department": ["R&D", "IT"], "/org/id": 7, "staff": true, "groups": "engineers",
        } });
        let required = RequiredClaims::new(&config, &[]).unwrap();
        let good = json!({
            "hd": "acme.test", "department": "IT", "org": { "id": 7 }, "staff": true, "groups": ["all", "engineers"],
        });
        assert_eq!(required.missing(&good, None), None);
        for (name, value) in [
            ("hd", json!("ACME.test")),
            ("hd", json!("acme.test.evil.test")),
            ("hd", json!(null)),
            ("department", json!("Sales")),
            ("org", json!({ "id": "7" })),
            ("staff", json!("true")),
            ("groups", json!([["engineers"]])),
            ("groups", json!("all engineers")),
        ] {
            let mut bad = good.clone();
            bad[name] = value.clone();
            let missing =
                required.missing(&bad, None).map(|missing| missing.trim_matches('/').split('/').next().unwrap());
            assert_eq!(missing, Some(name), "{value}");
        }
        // Userinfo tells what the ID token leaves out, and corrects nothing.
        let mut thin = good.clone();
        thin.as_object_mut().unwrap().remove("hd");
        assert_eq!(required.missing(&thin, Some(&json!({ "hd": "acme.test" }))), None);
        let mut other = good;
        other["hd"] = json!("other.test");
        assert_eq!(required.missing(&other, Some(&json!({ "hd": "acme.test" }))), Some("hd"));
    }

    #[test]
    fn what_was_asked_for_with_hd_is_required() {
        let with = |domain: &str| RequiredClaims::new(&json!({}), &[("hd".into(), domain.into())]).unwrap();
        assert_eq!(with("acme.test").missing(&json!({ "hd": "acme.test" }), None), None);
        assert_eq!(with("acme.test").missing(&json!({ "hd": "other.test" }), None), Some("hd"));
        assert_eq!(with("acme.test").missing(&json!({}), None), Some("hd"), "a private account");
        assert_eq!(with("*").missing(&json!({ "hd": "any.test" }), None), None);
        assert_eq!(with("*").missing(&json!({}), None), Some("hd"));
    }

    #[test]
    fn what_cannot_be_required_is_refused() {
        for bad in [
            json!([]),
            json!({ "a": [] }),
            json!({ "a": {} }),
            json!({ "a": null }),
            json!({ "a": 1.5 }),
            json!({ "": "a" }),
        ] {
            assert!(RequiredClaims::new(&json!({ "required_claims": bad }), &[]).is_err(), "{bad}");
        }
        assert!(RequiredClaims::new(&json!({ "required_claims": null }), &[]).unwrap().is_empty());
    }

    #[test]
    fn a_default_role_needs_a_fence_where_anybody_can_have_an_account() {
        let open = |issuer: &str, config: Value| {
            let required = RequiredClaims::new(&config, &[]).unwrap();
            open_to_everybody(issuer, &config, &required).is_some()
        };
        let role = json!({ "default_role": "viewer" });
        for issuer in [
            "https://accounts.google.com",
            "https://login.microsoftonline.com/common/v2.0",
            "https://login.microsoftonline.com/9188040D-6c67-4c5b-b112-36a304b66dad/v2.0",
            "https://github.com/login/oauth/access_token",
        ] {
            assert!(open(issuer, role.clone()), "{issuer}");
            assert!(!open(issuer, json!({ "group_roles": { "a": "viewer" } })), "{issuer}");
            assert!(
                !open(issuer, json!({ "default_role": "viewer", "required_claims": { "hd": "a.test" } })),
                "{issuer}"
            );
        }
        assert!(!open("https://github.com/login", json!({ "default_role": "viewer", "organizations": ["acme"] })));
        assert!(open("https://github.com/login", json!({ "default_role": "viewer", "organizations": [] })));
        for own in
            ["https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0", "https://id.acme.test"]
        {
            assert!(!open(own, role.clone()), "{own}");
        }
    }
}
