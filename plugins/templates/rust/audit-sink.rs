//! {{title}}: sends audit events to an address, as JSON.

use kaizen_plugin::http::Request;
use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::sink::Event;
use kaizen_plugin::{AuditSink, Call, Capability, Manifest, Plugin, Result, Secret, SecretSlot, Url};

/// What a connection has to fill in. Field names, types and documentation become the form.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The address that takes the events.
    url: Url,
}

struct Sink;

impl Plugin for Sink {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "{{name}}",
        version: env!("CARGO_PKG_VERSION"),
        title: "{{title}}",
        description: "Sends audit events to an address, as JSON.",
        // The server puts it into requests to `url`'s host and to no other.
        secrets: &[SecretSlot {
            name: "token",
            description: "A token that the address accepts.",
            hosts: &["{config.url}"],
        }],
        // The only host this plugin may speak to.
        capabilities: &[Capability::Http("{config.url}")],
    };
}

impl AuditSink for Sink {
    /// Does the sink take events? A sentence for the operator.
    fn check(call: &Call<Config>) -> Result<String> {
        post(call, &[])?;
        Ok(format!("{} takes events.", call.config.url.authority()))
    }

    /// Returns how many events, from the first, are stored; the rest comes again.
    fn deliver(call: &Call<Config>, events: &[Event]) -> Result<u32> {
        post(call, events)?;
        Ok(u32::try_from(events.len()).unwrap_or(u32::MAX))
    }
}

#[derive(serde::Serialize)]
struct Batch<'a> {
    events: &'a [Event],
}

fn post(call: &Call<Config>, events: &[Event]) -> Result<()> {
    Request::post(&call.config.url)
        .header("authorization", Secret::named("token").bearer())
        .header("idempotency-key", &call.idempotency_key)
        .json(&Batch { events })?
        .send()?
        .success()?; // 401 is for the operator, 503 is worth another attempt: the error knows
    Ok(())
}

kaizen_plugin::audit_sink!(Sink);

#[cfg(test)]
mod tests {
    use kaizen_plugin::{Error, http::Response, testing};

    use super::*;

    #[test]
    fn an_expired_token_is_for_the_operator_to_fix() {
        let far_side = testing::answer(|request| {
            assert_eq!(request.header("authorization"), Some("Bearer {{secret:token}}"));
            Ok(Response::new(401, "token expired"))
        });
        let call = testing::call::<Sink>(r#"{"url": "https://logs.example.com/intake"}"#);
        assert!(matches!(Sink::deliver(&call, &[testing::event(1)]), Err(Error::Config(_))));
        assert_eq!(far_side.requests().len(), 1);
    }
}
