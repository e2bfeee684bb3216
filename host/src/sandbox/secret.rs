//! Secrets are used, never read.
//!
//! A plugin writes `{{secret:NAME}}` into a header's value. On the way out the host puts the secret in its place, if the
//! request goes to a host that the secret is bound to; anywhere else the request is refused. On the way in, whatever
//! repeats a secret that the plugin may not read is masked, also where it is split over several pieces.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, HeaderValue};
use secrecy::{ExposeSecret, SecretString};

use super::{
    grants::Grants,
    mask::{Mask, Needles},
    pattern::{Pattern, Target},
};

const OPEN: &str = "{{secret:";
const CLOSE: &str = "}}";

/// Whether there is the beginning of a placeholder in this.
pub fn mentions(bytes: &[u8]) -> bool {
    bytes.windows(OPEN.len()).any(|window| window == OPEN.as_bytes())
}

struct Entry {
    value: SecretString,
    hosts: Vec<Pattern>,
    reveal: bool,
}

/// The secrets of one call.
pub struct Vault {
    entries: BTreeMap<String, Entry>,
    /// What answers must not carry back to the plugin.
    hidden: Arc<Needles>,
    /// What logs and messages must not carry to people.
    all: Arc<Needles>,
}

impl Vault {
    /// Those of `secrets` that the manifest has a slot for.
    pub fn new(grants: &Grants, secrets: &BTreeMap<String, SecretString>) -> Self {
        let entries: BTreeMap<_, _> = secrets
            .iter()
            .filter_map(|(name, value)| {
                let hosts = grants.secret_hosts(name)?.to_vec();
                Some((name.clone(), Entry { value: value.clone(), hosts, reveal: grants.reveals(name) }))
            })
            .collect();
        let needles = |of: &dyn Fn(&Entry) -> bool| {
            Arc::new(Needles::new(entries.values().filter(|entry| of(entry)).map(|entry| entry.value.expose_secret())))
        };
        Self { hidden: needles(&|entry| !entry.reveal), all: needles(&|_| true), entries }
    }

    /// Puts secrets in the place of their placeholders. Returns whether there were any.
    ///
    /// # Errors
    /// Says why a placeholder is not replaced; the request must then not be sent.
    pub fn inject(&self, headers: &mut HeaderMap, target: &Target) -> Result<bool, String> {
        let mut injected = false;
        for (name, value) in headers.iter_mut() {
            if !mentions(value.as_bytes()) {
                continue;
            }
            let text =
                value.to_str().map_err(|_| format!("header `{name}`: a placeholder among bytes that are not text"))?;
            let expanded = self.expand(text, target).map_err(|why| format!("header `{name}`: {why}"))?;
            let mut expanded = HeaderValue::try_from(expanded).map_err(|_| {
                format!("header `{name}`: the secret holds characters that no header may carry, e.g. a line break")
            })?;
            expanded.set_sensitive(true);
            *value = expanded;
            injected = true;
        }
        Ok(injected)
    }

    fn expand(&self, text: &str, target: &Target) -> Result<String, String> {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(OPEN) {
            let (name, tail) = after.split_once(CLOSE).ok_or("a placeholder is not closed with `}}`")?;
            expanded.push_str(before);
            expanded.push_str(self.towards(name, target)?.expose_secret());
            rest = tail;
        }
        expanded.push_str(rest);
        Ok(expanded)
    }

    fn towards(&self, name: &str, target: &Target) -> Result<&SecretString, String> {
        let entry = self.entries.get(name).ok_or_else(|| {
            format!("the secret `{name}` is not set on this connection, or not in the plugin's manifest")
        })?;
        if entry.hosts.iter().any(|pattern| pattern.covers(target)) {
            return Ok(&entry.value);
        }
        let hosts: Vec<String> = entry.hosts.iter().map(ToString::to_string).collect();
        Err(match hosts.as_slice() {
            [] => format!("the secret `{name}` is bound to no host, so no request may carry it"),
            _ => format!("the secret `{name}` is bound to {} and must not be sent to {target}", hosts.join(", ")),
        })
    }

    /// The secret itself, for a plugin that was granted `reveal-secret`.
    ///
    /// # Errors
    /// Why it is not given, in words for the operator.
    pub fn reveal(&self, name: &str) -> Result<String, String> {
        match self.entries.get(name) {
            Some(entry) if entry.reveal => Ok(entry.value.expose_secret().to_owned()),
            Some(_) => Err(format!("the plugin's manifest does not ask for `reveal-secret({name})`")),
            None => Err(format!("the secret `{name}` is not set on this connection, or not in the plugin's manifest")),
        }
    }

    /// Masks answers to the plugin; `None` where there is nothing to hide.
    pub fn mask(&self) -> Option<Mask> {
        (!self.hidden.is_empty()).then(|| Mask::new(self.hidden.clone()))
    }

    /// Masks headers of an answer to the plugin.
    pub fn mask_headers(&self, headers: &mut HeaderMap) {
        if self.hidden.is_empty() {
            return;
        }
        for value in headers.values_mut() {
            let masked = Mask::all(self.hidden.clone(), value.as_bytes());
            if masked != value.as_bytes() {
                *value = HeaderValue::from_bytes(&masked).unwrap_or(HeaderValue::from_static("***"));
            }
        }
    }

    /// Masks a stream of text for people.
    pub fn mask_stream(&self) -> Mask {
        Mask::new(self.all.clone())
    }

    /// The beginning of a text for people, without any secret: at least its first `bytes`, if it has as many.
    pub fn mask_text(&self, text: &str, bytes: usize) -> String {
        // No further than a secret can reach that begins in what is wanted: a guest may hand over megabytes.
        let end = text.ceil_char_boundary(bytes.saturating_add(self.all.longest()).saturating_add(4));
        let (text, _) = text.split_at(end);
        if self.all.is_empty() {
            return text.to_owned();
        }
        String::from_utf8_lossy(&Mask::all(self.all.clone(), text.as_bytes())).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use url::Url;

    use super::*;
    use crate::sandbox::grants::{Capability, SecretSlot, Template};

    fn vault() -> Vault {
        let slot = |name: &str, hosts: &[&str]| SecretSlot {
            name: name.into(),
            description: String::new(),
            hosts: hosts.iter().map(|host| Template::http(host).unwrap()).collect(),
        };
        let slots = [slot("token", &["{config.url}"]), slot("signing-key", &[]), slot("unset", &["https://*"])];
        let asked = [Capability::RevealSecret("signing-key".into())];
        let grants = Grants::resolve(&asked, &slots, &json!({"url": "https://a.example"}), &BTreeMap::new()).unwrap();
        let secrets = [("token", "s3cr3t-token"), ("signing-key", "sign-with-me"), ("undeclared", "nobody-asked")];
        Vault::new(&grants, &secrets.iter().map(|(n, v)| ((*n).to_owned(), SecretString::from(*v))).collect())
    }

    fn inject(header: &str, url: &str) -> Result<String, String> {
        let mut headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, header.parse().unwrap())]);
        vault().inject(&mut headers, &Target::of_url(&Url::parse(url).unwrap()).unwrap())?;
        Ok(headers[http::header::AUTHORIZATION].to_str().unwrap().to_owned())
    }

    #[test]
    fn a_secret_goes_where_it_is_bound_and_nowhere_else() {
        assert_eq!(inject("Bearer {{secret:token}}", "https://a.example/x").unwrap(), "Bearer s3cr3t-token");
        assert_eq!(
            inject("{{secret:token}}:{{secret:token}}", "https://a.example/").unwrap(),
            "s3cr3t-token:s3cr3t-token"
        );
        assert_eq!(inject("no secret {{here}}", "https://evil.example/").unwrap(), "no secret {{here}}");
        for (header, url) in [
            ("Bearer {{secret:token}}", "https://evil.example/"),
            ("Bearer {{secret:token}}", "http://a.example/"),
            ("Bearer {{secret:token}}", "https://a.example:444/"),
            ("Bearer {{secret:token", "https://a.example/"),
            ("Bearer {{secret:other}}", "https://a.example/"),
            ("Bearer {{secret:unset}}", "https://a.example/"),
            ("Bearer {{secret:undeclared}}", "https://a.example/"),
            ("Bearer {{secret:signing-key}}", "https://a.example/"),
            ("Bearer {{secret: token}}", "https://a.example/"),
        ] {
            let error = inject(header, url).unwrap_err();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }

    #[test]
    fn only_what_is_asked_for_is_revealed() {
        assert_eq!(vault().reveal("signing-key").unwrap(), "sign-with-me");
        for name in ["token", "unset", "undeclared", ""] {
            assert!(vault().reveal(name).is_err(), "{name}");
        }
    }

    #[test]
    fn answers_and_texts_are_masked() {
        let vault = vault();
        let mut headers = HeaderMap::from_iter([(http::header::ETAG, "x-s3cr3t-token-x".parse().unwrap())]);
        vault.mask_headers(&mut headers);
        assert_eq!(headers[http::header::ETAG], "x-************-x");
        let text = "token=s3cr3t-token key=sign-with-me";
        assert_eq!(vault.mask_text(text, 100), "token=************ key=************");
        for bytes in 0..text.len() {
            let beginning = vault.mask_text(text, bytes);
            assert!("token=************ key=************".starts_with(&beginning[..bytes]), "{beginning}");
        }
    }
}
