//! An audit sink that says of itself whatever is written into its bytes, so that the tests need one build for any number
//! of versions, names, capabilities and lies. Never bundled.
//!
//! Its manifest is JSON behind [`MARKER`] in a data segment of fixed length, padded with spaces: a test finds the marker
//! in the `.wasm` file and writes another manifest over it. Such a file differs from this one as two releases of a plugin
//! differ, for all that the server can see.
//!
//! `check` answers `NAME VERSION`, after it has asked `config.url` where that is set: the far side then decides how long
//! the call takes. With `config.fail` it is refused with that text.

use kaizen_plugin::bindings::audit_sink::exports::kaizen::audit_sink::sink;
use kaizen_plugin::bindings::shared::exports::kaizen::plugin::manifest;
use kaizen_plugin::http::Request;
use kaizen_plugin::{Url, serde_json};
use serde::Deserialize;

/// Sixteen bytes that are nowhere else in the file.
const MARKER: &[u8; 16] = b"KZTEST-MANIFEST:";
/// Bytes of the marker and the manifest behind it.
const LENGTH: usize = 8192;
const DEFAULT: &[u8] = br#"{"name":"chameleon","version":"1.0.0","title":"Chameleon","description":"","schema":{"type":"object"},"secrets":[],"http":["{config.url}"],"reveal":[],"directories":[]}"#;

static MANIFEST: [u8; LENGTH] = padded();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which checks it")]
const fn padded() -> [u8; LENGTH] {
    let mut bytes = [b' '; LENGTH];
    let mut at = 0;
    while at < MARKER.len() {
        bytes[at] = MARKER[at];
        at += 1;
    }
    let mut from = 0;
    while from < DEFAULT.len() {
        bytes[at + from] = DEFAULT[from];
        from += 1;
    }
    bytes
}

#[derive(Deserialize)]
struct Said {
    name: String,
    version: String,
    title: String,
    description: String,
    /// As text where it is a string: then it need not even be JSON.
    schema: serde_json::Value,
    secrets: Vec<Secret>,
    http: Vec<String>,
    reveal: Vec<String>,
    directories: Vec<String>,
    /// Says something else each time.
    #[serde(default)]
    wavers: bool,
}

#[derive(Deserialize)]
struct Secret {
    name: String,
    hosts: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    url: Option<Url>,
    fail: Option<String>,
}

/// What the bytes say now; the compiler must not look at them.
fn said() -> Result<Said, String> {
    let bytes = std::hint::black_box(&MANIFEST);
    let text = bytes.get(MARKER.len()..).unwrap_or_default();
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

fn empty() -> Said {
    Said {
        name: String::new(),
        version: String::new(),
        title: String::new(),
        description: String::new(),
        schema: serde_json::Value::Null,
        secrets: Vec::new(),
        http: Vec::new(),
        reveal: Vec::new(),
        directories: Vec::new(),
        wavers: false,
    }
}

enum Chameleon {}

impl manifest::Guest for Chameleon {
    fn describe() -> manifest::Manifest {
        let said = said().unwrap_or_else(|_| empty());
        let drawn = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|d| d.as_nanos());
        let slot = |secret: Secret| manifest::SecretSlot {
            name: secret.name,
            description: "A secret".to_owned(),
            hosts: secret.hosts,
        };
        let http = said.http.into_iter().map(manifest::Capability::Http);
        let reveal = said.reveal.into_iter().map(manifest::Capability::RevealSecret);
        let directories = said.directories.into_iter().map(manifest::Capability::Directory);
        manifest::Manifest {
            name: said.name,
            version: said.version,
            title: if said.wavers { format!("{} {drawn:?}", said.title) } else { said.title },
            description: said.description,
            config_schema: match said.schema {
                serde_json::Value::String(text) => text,
                schema => schema.to_string(),
            },
            secrets: said.secrets.into_iter().map(slot).collect(),
            capabilities: http.chain(reveal).chain(directories).collect(),
        }
    }
}

/// Which version this is, once the far side has answered.
fn answer(call: &sink::Call) -> Result<String, sink::Error> {
    let internal = |error: String| sink::Error::Internal(error);
    let config: Config = serde_json::from_str(&call.config).map_err(|error| internal(error.to_string()))?;
    let said = said().map_err(internal)?;
    if let Some(why) = config.fail {
        return Err(sink::Error::Rejected(why));
    }
    if let Some(url) = &config.url {
        let asked = Request::post(url).header("x-version", said.version.as_str()).send();
        asked.and_then(|response| response.success()).map_err(kaizen_plugin::Error::from)?;
    }
    Ok(format!("{} {}", said.name, said.version))
}

impl sink::Guest for Chameleon {
    fn check(call: sink::Call) -> Result<String, sink::Error> {
        answer(&call)
    }

    fn deliver(call: sink::Call, events: Vec<sink::Event>) -> Result<u32, sink::Error> {
        answer(&call)?;
        Ok(u32::try_from(events.len()).unwrap_or(u32::MAX))
    }
}

#[cfg(target_os = "wasi")]
const _: () = {
    kaizen_plugin::bindings::shared::export!(Chameleon with_types_in kaizen_plugin::bindings::shared);
    kaizen_plugin::bindings::audit_sink::export!(Chameleon with_types_in kaizen_plugin::bindings::audit_sink);
};

// Elsewhere nothing exports it, and it need only compile.
#[cfg(not(target_os = "wasi"))]
const _: fn() -> manifest::Manifest = <Chameleon as manifest::Guest>::describe;
#[cfg(not(target_os = "wasi"))]
const _: fn(sink::Call) -> Result<String, sink::Error> = <Chameleon as sink::Guest>::check;
