//! `POST /api/v1/plugins`: a component arrives, is checked exactly as at a start, and is kept. Nothing runs it yet.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Json,
    body::Body,
    extract::{
        DefaultBodyLimit, FromRequest as _, Multipart, Request, State,
        multipart::{Field, MultipartError},
    },
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    extract::{Caller, IdempotencyKey, idempotency_key},
    guard::change,
    idempotency::{Claimed, Once},
    plugins::{VersionView, require},
    problem::{Fault, Problem, ProblemType, Result},
};
use crate::{
    app::App,
    authz::Action,
    domain::{connection::Kind, plugin::Origin, principal::Principal},
    plugins::{Changes, SIGNATURE, install, signature::Signature},
    store::plugins as rows,
};

/// Of the route, which has more time than others.
pub(super) const PATH: &str = "/api/v1/plugins";
/// Uploads at once on a host; others wait before their body is read. Each holds a whole component in memory and compiles
/// it on every processor.
static UPLOADS: Semaphore = Semaphore::const_new(2);
/// For a client to finish sending what is refused already.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of that.
const DRAINED: usize = 8 << 20;
/// Bytes of an upload besides its parts: boundaries and headers.
const AROUND: usize = 64 << 10;

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(upload_plugin))
}

/// The parts of an upload of a plugin.
#[derive(Debug, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PluginUpload)]
#[expect(dead_code, reason = "only its schema is used; the parts are read one after the other")]
struct Parts {
    /// The WebAssembly component: the content of a `.wasm` file, at most `plugins_max_bytes` (64 MiB unless set otherwise).
    #[schema(value_type = String, format = Binary)]
    component: Bytes,
    /// The content of the `.wasm.sig` file that `kaizen plugin sign` made. Needed where `plugins_trusted_keys` is set.
    #[schema(
        value_type = String,
        required = false,
        max_length = 1024,
        pattern = r"^\s*ed25519:[0-9A-Fa-f]{64}:[0-9A-Fa-f]{128}\s*$",
        example = "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a:e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )]
    signature: Option<String>,
}

/// The version of a plugin that an upload installed.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = UploadedPlugin)]
pub struct Uploaded {
    /// The plugin's id.
    id: Uuid,
    /// What the plugin and its connections are for.
    kind: Kind,
    /// The plugin's name, unique among those of its kind: what a connection gives as `plugin`.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-z0-9]+(-[a-z0-9]+)*$")]
    name: String,
    /// The version that was uploaded.
    version: VersionView,
    /// What activating the version would change.
    changes: Changes,
}

/// A request's body.
struct Received {
    component: Bytes,
    signature: Option<Signature>,
    idempotency: Option<IdempotencyKey>,
}

/// Upload a version of a plugin
///
/// The component is compiled and checked as it is at every start, and refused if anything is wrong with it. It is then
/// installed, and used by nobody until it is activated; `changes` says what that would let it reach. The same component again
/// changes nothing; another component of an installed version is refused with 409, and so is one in quarantine. Only platform
/// administrators may.
#[utoipa::path(post, path = "/api/v1/plugins", tag = "Plugins", params(IdempotencyKey),
    request_body(content = Parts, content_type = "multipart/form-data",
        description = "The component, and its signature if it is signed, each once."),
    responses(
        (status = CREATED, description = "The version is installed, or its signature is renewed.", body = Uploaded, headers(("ETag"))),
        (status = OK, description = "The same component is installed already; nothing changed.", body = Uploaded)),
    extensions(("x-problems" = json!(["conflict", "-request_timeout"]))))]
async fn upload_plugin(State(app): State<App>, caller: Result<Caller>, request: Request) -> Result<Response> {
    let caller = match admitted(&app, caller).await {
        Ok(caller) => caller,
        Err(problem) => return Err(after(request.into_body(), problem).await),
    };
    let turn = UPLOADS.acquire().await.map_err(Problem::internal)?;
    let Received { component, signature, idempotency } = receive(&app, request).await?;
    let candidate = app.plugins.inspect("upload", Origin::Uploaded, component, signature).await?;
    drop(turn);
    let mut tx = app.store.begin().await?;
    let once = match Once::claim(&app, &mut tx, &caller, idempotency).await? {
        Claimed::Fresh(once) => once,
        Claimed::Answered(response) => return Ok(response),
    };
    rows::lock(&mut tx).await?;
    let registered = install::register(&mut tx, &app.clock, &candidate, Some(caller.user_id)).await?;
    let (plugin, version) = (&registered.plugin, &registered.version);
    let (lines, quarantines) = (rows::lines(&mut tx).await?, rows::quarantines(&mut tx).await?);
    let uploaded = Uploaded {
        id: plugin.id,
        kind: plugin.kind,
        name: plugin.name.clone(),
        version: VersionView::of(&app, (plugin.kind, &plugin.name), version, (&lines, &quarantines))?,
        changes: install::changes(&mut tx, plugin, version).await?,
    };
    if !(registered.fresh || registered.renewed) {
        return Ok((StatusCode::OK, Json(uploaded)).into_response());
    }
    let response = once.created(&mut tx, &uploaded, plugin.revision).await?;
    let details = json!({
        "name": format!("{}/{}", plugin.kind.as_str(), plugin.name),
        "version": version.version, "digest": version.digest, "size": version.size, "signer": version.signer,
    });
    change(&app, tx, &caller, Action::PluginCreate, format!("plugin/{}", plugin.id), details).await?;
    app.plugins.changed(Vec::new()).await;
    Ok(response)
}

async fn admitted(app: &App, caller: Result<Caller>) -> Result<Principal> {
    let Caller(caller) = caller?;
    require(app, &caller, Action::PluginCreate).await?;
    Ok(caller)
}

/// A problem told once the client has sent its body: in the middle of sending it would find the connection closed, and
/// never read why. Where the body is too long for that, it is told that the connection ends.
async fn after(body: Body, problem: Problem) -> Problem {
    let mut body = body;
    let whole = tokio::time::timeout(PATIENCE, async {
        let mut length = 0;
        while let Some(Ok(frame)) = body.frame().await {
            length += frame.data_ref().map_or(0, Bytes::len);
            if length > DRAINED {
                return false;
            }
        }
        true
    });
    if whole.await.unwrap_or(false) {
        return problem;
    }
    problem.with_header(header::CONNECTION, HeaderValue::from_static("close"))
}

/// A body of which the rest can still be read when whoever read it has stopped in the middle.
#[derive(Clone)]
struct Lent(Arc<Mutex<Body>>);

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock()).poll_frame(cx)
    }
}

/// Reads the parts, each within its limit.
async fn receive(app: &App, request: Request) -> Result<Received> {
    let (headers, method) = (request.headers().clone(), request.method().clone());
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let shape = || {
        let detail = "Send multipart/form-data with the parts `component`, the .wasm file, and if it is signed `signature`, \
                      the text of its .sig file.";
        Problem::new(ProblemType::MediaType, detail)
    };
    let (head, body) = request.into_parts();
    let body = Lent(Arc::new(Mutex::new(body)));
    if multer::parse_boundary(media).is_err() {
        return Err(after(Body::new(body), shape()).await);
    }
    let mut request = Request::from_parts(head, Body::new(body.clone()));
    // Each part has its own limit, below. This one is for what is around them, and for what is read only to be dropped.
    DefaultBodyLimit::max(app.plugins.max_bytes() + SIGNATURE + AROUND + DRAINED).apply(&mut request);
    let mut multipart = Multipart::from_request(request, app).await.map_err(|_| shape())?;
    let (component, signature) = match parts(app, &mut multipart).await {
        Ok(parts) => parts,
        Err(problem) => {
            drop(multipart);
            return Err(after(Body::new(body), problem).await);
        }
    };
    // Of each part its digest: that is shorter than a second copy of the component.
    let hashed = (component.clone(), signature.clone().unwrap_or_default());
    let digested = tokio::task::spawn_blocking(move || [hashed.0, hashed.1].map(Sha256::digest).concat());
    let digested = digested.await.map_err(Problem::internal)?;
    let idempotency = idempotency_key(&headers, &method, PATH, &digested)?;
    let signature = signature.map(|bytes| {
        let parsed = String::from_utf8_lossy(&bytes).parse::<Signature>();
        parsed.map_err(|error| Problem::invalid(vec![Fault::new("/signature", error.to_string())]))
    });
    Ok(Received { component, signature: signature.transpose()?, idempotency })
}

/// The component and its signature.
async fn parts(app: &App, multipart: &mut Multipart) -> Result<(Bytes, Option<Bytes>)> {
    let (mut component, mut signature) = (None, None);
    while let Some(field) = multipart.next_field().await.map_err(unreadable)? {
        let name = field.name().unwrap_or_default().to_owned();
        let (slot, limit) = match name.as_str() {
            "component" => (&mut component, app.plugins.max_bytes()),
            "signature" => (&mut signature, SIGNATURE),
            _ => {
                let message = "is no part of an upload: there are `component` and `signature`";
                let name: String = name.chars().take(100).collect();
                return Err(Problem::invalid(vec![Fault::new(format!("/{name}"), message)]));
            }
        };
        if slot.is_some() {
            return Err(Problem::invalid(vec![Fault::new(format!("/{name}"), "is there twice")]));
        }
        *slot = Some(bounded(field, &name, limit).await?);
    }
    let component = component.filter(|bytes| !bytes.is_empty());
    let component = component
        .ok_or_else(|| Problem::invalid(vec![Fault::new("/component", "is needed: the plugin's .wasm file")]))?;
    Ok((component, signature))
}

fn unreadable(error: MultipartError) -> Problem {
    let kind = match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ProblemType::TooLarge,
        _ => ProblemType::Malformed,
    };
    Problem::new(kind, format!("The body could not be read: {}", error.body_text()))
}

/// A part, if it is within its limit.
async fn bounded(mut field: Field<'_>, name: &str, limit: usize) -> Result<Bytes> {
    let (mut bytes, mut length) = (BytesMut::new(), 0_usize);
    while let Some(chunk) = field.chunk().await.map_err(unreadable)? {
        length += chunk.len();
        if length > limit {
            let setting = if name == "component" { " (setting plugins_max_bytes)" } else { "" };
            let detail = format!("The part `{name}` is over {limit} bytes{setting}.");
            return Err(Problem::new(ProblemType::TooLarge, detail));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema as _;

    use super::*;

    #[test]
    fn the_schema_takes_the_signatures_that_the_server_takes() {
        let schema = serde_json::to_value(Parts::schema()).unwrap();
        let signature = &schema["properties"]["signature"];
        assert_eq!(signature["maxLength"], SIGNATURE);
        let example = signature["example"].as_str().unwrap().to_owned();
        let signature = jsonschema::draft202012::new(signature).unwrap();
        for (text, good) in [
            (format!("{example}\n"), true),
            (example.to_uppercase().replacen("ED25519", "ed25519", 1), true),
            (example[1..].to_owned(), false),
            (example[..example.len() - 1].to_owned(), false),
            (example.replacen(':', " ", 1), false),
            (String::new(), false),
        ] {
            assert_eq!(
                (signature.is_valid(&text.as_str().into()), text.parse::<Signature>().is_ok()),
                (good, good),
                "{text}"
            );
        }
    }
}
