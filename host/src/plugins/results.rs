//! The one door for what a call gives back: each text that a guest returns is bounded, free of secrets and control
//! characters, and what is a link is one, before anybody stores or shows it. The texts of errors go through
//! [`super::call`], by the same [`Context::for_people`].

use url::Url;

use crate::sandbox::{
    bindings::{
        deployment_target::exports::kaizen::deployment_target::target,
        identity_provider::exports::kaizen::identity_provider::provider,
    },
    context::Context,
};

/// Bytes of a text that is shown.
const TEXT: usize = 2000;
/// Bytes of one word or value of a protocol.
const WORD: usize = 500;
/// Scopes and parameters of a protocol.
const ENTRIES: usize = 100;

/// What a guest returns.
pub(super) trait FromGuest: Sized {
    /// The same, fit to be stored and shown.
    ///
    /// # Errors
    /// What makes no sense, said of the plugin: `it returned …`.
    fn received(self, context: &Context) -> Result<Self, String>;
}

impl FromGuest for () {
    fn received(self, _context: &Context) -> Result<Self, String> {
        Ok(())
    }
}

impl FromGuest for u32 {
    fn received(self, _context: &Context) -> Result<Self, String> {
        Ok(self)
    }
}

impl FromGuest for String {
    fn received(self, context: &Context) -> Result<Self, String> {
        Ok(context.for_people(&self, TEXT))
    }
}

/// A text that means something to a machine: changed, it would mean something else, so it is taken as it is or not at all.
fn exact(context: &Context, text: String, bytes: usize, what: &str) -> Result<String, String> {
    if text.len() > bytes {
        return Err(format!("it returned {what} of more than {bytes} bytes"));
    }
    if context.for_people(&text, bytes) != text {
        return Err(format!("it returned {what} with a secret or a control character in it"));
    }
    Ok(text)
}

fn link(context: &Context, text: String, what: &str) -> Result<String, String> {
    let text = exact(context, text, TEXT, what)?;
    match Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(text),
        _ => Err(format!("it returned {what} that is no http or https address")),
    }
}

impl FromGuest for target::Registration {
    fn received(self, context: &Context) -> Result<Self, String> {
        if self.id.is_empty() {
            return Err("it returned a registration without an id".into());
        }
        // It is registered: without a link to show, rather than refused and left behind there.
        let endpoint = self.endpoint.and_then(|endpoint| match link(context, endpoint, "an endpoint") {
            Ok(endpoint) => Some(endpoint),
            Err(why) => {
                let (plugin, connection) = (context.plugin.as_str(), context.connection.as_str());
                tracing::warn!(target: "kaizen::plugin", plugin, connection, "{why}: it is left out");
                None
            }
        });
        Ok(Self { id: exact(context, self.id, TEXT, "a registration with an id")?, endpoint })
    }
}

impl FromGuest for target::State {
    fn received(self, context: &Context) -> Result<Self, String> {
        Ok(match self {
            target::State::Pending(why) => target::State::Pending(context.for_people(&why, TEXT)),
            target::State::Failed(why) => target::State::Failed(context.for_people(&why, TEXT)),
            state => state,
        })
    }
}

impl FromGuest for provider::Protocol {
    fn received(self, context: &Context) -> Result<Self, String> {
        let words = |scopes: &mut Vec<String>, parameters: &mut Vec<(String, String)>| {
            if scopes.len() > ENTRIES || parameters.len() > ENTRIES {
                return Err(format!("it returned more than {ENTRIES} scopes or parameters"));
            }
            let parameters = parameters.iter_mut().flat_map(|(name, value)| [name, value]);
            for word in scopes.iter_mut().chain(parameters) {
                *word = exact(context, std::mem::take(word), WORD, "a scope or parameter")?;
            }
            Ok(())
        };
        Ok(match self {
            provider::Protocol::Oidc(mut oidc) => {
                oidc.issuer = exact(context, oidc.issuer, TEXT, "an issuer")?;
                words(&mut oidc.scopes, &mut oidc.parameters)?;
                provider::Protocol::Oidc(oidc)
            }
            provider::Protocol::Oauth2(mut oauth2) => {
                oauth2.authorization_endpoint =
                    exact(context, oauth2.authorization_endpoint, TEXT, "an authorization endpoint")?;
                oauth2.token_endpoint = exact(context, oauth2.token_endpoint, TEXT, "a token endpoint")?;
                words(&mut oauth2.scopes, &mut oauth2.parameters)?;
                provider::Protocol::Oauth2(oauth2)
            }
        })
    }
}

impl FromGuest for provider::Identity {
    /// Subject and groups decide who somebody is and what they may: they are left as they are, and the rest of the server
    /// bounds them. What is only shown is made fit for that.
    fn received(self, context: &Context) -> Result<Self, String> {
        let subject = exact(context, self.subject, TEXT, "a subject")?;
        let email = self.email.map(|email| exact(context, email, TEXT, "an e-mail address")).transpose()?;
        let name = self.name.map(|name| context.for_people(&name, TEXT));
        Ok(Self { subject, email, name, ..self })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::{
        clock::Clock,
        sandbox::{
            egress::{Client, Policy, SystemResolver},
            grants::{Grants, SecretSlot},
            limits::{Limits, LogRate},
            secret::Vault,
        },
    };

    const SECRET: &str = "s3cret-of-the-tenant";

    fn context() -> Context {
        let slot = SecretSlot { name: "token".into(), description: String::new(), hosts: vec![] };
        let grants = Grants::resolve(&[], &[slot], &serde_json::Value::Null, &BTreeMap::new()).unwrap();
        let vault = Vault::new(&grants, &BTreeMap::from([("token".to_owned(), SECRET.into())]));
        let lines = Arc::new(LogRate::new(50, Clock::system()));
        let egress = Client::new(Policy::default(), Arc::new(SystemResolver::default()));
        Context::new("bad".into(), "c".into(), grants, vault, Limits::default(), lines, egress)
    }

    #[test]
    fn what_is_shown_has_no_secret_no_control_character_and_an_end() {
        let said = format!("it works\u{1b}[2J with {SECRET}{}", "x".repeat(3_000_000));
        let shown = said.received(&context()).unwrap();
        assert!(!shown.contains(SECRET) && !shown.contains('\u{1b}') && shown.len() < TEXT + 10, "{}", shown.len());
        let state = target::State::Failed(format!("no\n{SECRET}"));
        let target::State::Failed(why) = state.received(&context()).unwrap() else { panic!("another state") };
        assert!(!why.contains(SECRET) && !why.contains('\n'), "{why}");
    }

    #[test]
    fn an_endpoint_is_a_link_or_left_out() {
        let endpoint = |endpoint: &str| {
            let said = target::Registration { id: "r1".into(), endpoint: Some(endpoint.into()) };
            said.received(&context()).unwrap().endpoint
        };
        assert_eq!(endpoint("http://a.agents.svc:8080/x?y").as_deref(), Some("http://a.agents.svc:8080/x?y"));
        let long = format!("https://a.example/{}", "x".repeat(TEXT));
        for bad in ["javascript:alert(1)", "/agents/1", "", "http://", &long, &format!("https://a.example/?t={SECRET}")]
        {
            assert_eq!(endpoint(bad), None, "{bad}");
        }
        for id in ["", &"x".repeat(TEXT + 1), "a\nb"] {
            assert!(target::Registration { id: id.into(), endpoint: None }.received(&context()).is_err());
        }
    }

    #[test]
    fn a_protocol_is_bounded() {
        let oidc = |issuer: &str, scopes: usize| {
            let scopes = vec!["s".to_owned(); scopes];
            let oidc = provider::Oidc { issuer: issuer.into(), scopes, parameters: vec![] };
            provider::Protocol::Oidc(oidc).received(&context())
        };
        assert!(oidc("https://idp.example", 3).is_ok());
        for (issuer, scopes) in [("https://idp.example", ENTRIES + 1), ("https://idp.example/\r\n", 1), (SECRET, 1)] {
            assert!(oidc(issuer, scopes).unwrap_err().starts_with("it returned"));
        }
    }
}
