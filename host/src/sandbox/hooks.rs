//! Every outgoing request of a guest comes through here: [`wasmtime_wasi_http`] hands it over instead of sending it.
//!
//! A guest that follows a redirect makes a new request, so that is checked like the first.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context as Task, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, timeout};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::{
    body::EgressBody,
    context::Context,
    descriptors::{Descriptors, Held},
    egress::{BETWEEN, EXCHANGE, EgressError, FIRST_BYTE, Timeouts},
    limits::BODY_CHUNK,
    mask::Mask,
    pattern::Target,
    secret,
};

/// The hooks of one call.
pub(super) struct Hooks {
    context: Arc<Context>,
    descriptors: Descriptors,
    /// Requests end by then, whatever they were given: before the call does, so that the guest can say why it failed.
    until: Instant,
}

impl Hooks {
    /// For a call that begins now.
    pub(super) fn new(context: Arc<Context>, descriptors: Descriptors) -> Self {
        let until = Instant::now() + context.limits.wall.mul_f64(0.9);
        Self { context, descriptors, until }
    }
}

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Hooks {
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        1
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _failure: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let (context, descriptors, until) = (self.context.clone(), self.descriptors.clone(), self.until);
        Box::new(async move {
            match send(&context, &descriptors, until, request, options).await {
                // The connection belongs to the body, so there is nothing more to drive.
                Ok(response) => Ok((response, Box::new(async { Ok(()) }) as Box<_>)),
                Err(error) => {
                    if error.denied() {
                        context.deny(&error.to_string());
                    } else {
                        tracing::debug!(target: "kaizen::plugin", plugin = context.plugin, connection = context.connection, %error, "request failed");
                    }
                    Err(for_guest(error))
                }
            }
        })
    }
}

async fn send(
    context: &Context,
    descriptors: &Descriptors,
    until: Instant,
    request: Request<WasiBody>,
    options: Option<RequestOptions>,
) -> Result<Response<WasiBody>, EgressError> {
    let limits = &context.limits;
    if context.requests.fetch_add(1, Ordering::Relaxed) >= limits.http_requests {
        return Err(EgressError::Denied(format!("more than {} requests in one call", limits.http_requests)));
    }
    if [Method::CONNECT, Method::TRACE].contains(request.method()) {
        return Err(EgressError::Denied(format!("{} requests are not offered to plugins", request.method())));
    }
    let target = Target::of_uri(request.uri())?;
    context.grants.http(&target).map_err(EgressError::Denied)?;
    context.egress.permits(&target)?;
    if secret::mentions(request.uri().to_string().as_bytes()) {
        return Err(EgressError::Denied("a secret may only be named in a header's value, not in an address".into()));
    }
    let (mut parts, body) = request.into_parts();
    let injected = context.vault.inject(&mut parts.headers, &target).map_err(EgressError::Denied)?;
    if context.vault.mask().is_some() {
        // What is compressed can't be searched.
        parts.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    let body = collect(context, body, &parts.headers).await?;
    if secret::mentions(&body) && !context.placeholders_in_arguments {
        return Err(EgressError::Denied("a secret may only be named in a header's value, not in a body".into()));
    }
    let whole = limits.http_exchange.min(until.saturating_duration_since(Instant::now()));
    let over = || EgressError::Timeout { what: EXCHANGE, limit: whole };
    let begun = Instant::now();
    let held = timeout(whole, descriptors.wait()).await.ok().flatten().ok_or_else(over)?;
    let whole = whole.saturating_sub(begun.elapsed());
    let wished = options.unwrap_or_default();
    let wish = |wished: Option<Duration>| wished.map_or(whole, |wished| wished.min(whole));
    let timeouts = Timeouts {
        connect: wish(wished.connect_timeout),
        first_byte: wish(wished.first_byte_timeout),
        between_bytes: wish(wished.between_bytes_timeout),
        whole,
    };
    tracing::debug!(target: "kaizen::plugin", plugin = context.plugin, connection = context.connection, method = %parts.method, %target, injected, "request");
    let request = Request::from_parts(parts, Full::new(body));
    let egress = context.egress.asked_by((&context.caller).into());
    let mut response = egress.send(request, context.bytes_in.clone(), timeouts).await?;
    let mask = context.vault.mask();
    if mask.is_some() {
        refuse_encoding(response.headers())?;
    }
    context.vault.mask_headers(response.headers_mut());
    Ok(response.map(|body| Answer { body, mask, done: false, _held: held }.boxed_unsync()))
}

/// The whole body of a request, before anything of it leaves. Its bytes were counted as the guest wrote them.
async fn collect(context: &Context, mut body: WasiBody, headers: &HeaderMap) -> Result<Bytes, EgressError> {
    let too_large = || EgressError::TooLarge("request");
    let headers: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if !context.bytes_out.take(headers as u64) {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // Trailers are left out, as of answers.
        let Ok(data) = frame.map_err(|_| EgressError::Unfinished)?.into_data() else { continue };
        whole.extend_from_slice(&data);
    }
    // A guest that gives up in the middle ends the body, and what there is of it must not be taken for the whole.
    if context.cut_off.load(Ordering::Relaxed) { Err(too_large()) } else { Ok(whole.freeze()) }
}

/// Refuses what cannot be searched for secrets.
fn refuse_encoding(headers: &HeaderMap) -> Result<(), EgressError> {
    let plain = |value: &HeaderValue, plain: &str| value.as_bytes().eq_ignore_ascii_case(plain.as_bytes());
    let content = headers.get_all(header::CONTENT_ENCODING).iter().find(|value| !plain(value, "identity"));
    let transfer = headers.get_all(header::TRANSFER_ENCODING).iter().find(|value| !plain(value, "chunked"));
    match content.or(transfer) {
        Some(encoding) => Err(EgressError::Encoding(String::from_utf8_lossy(encoding.as_bytes()).into_owned())),
        None => Ok(()),
    }
}

/// As much of an error as a guest can be told in WASI's terms.
fn for_guest(error: EgressError) -> Error {
    match error {
        EgressError::Target(_) | EgressError::Denied(_) => Error::HttpRequestDenied,
        EgressError::Resolve(..) => Error::DnsError { rcode: None, info_code: None },
        EgressError::Connect(..) => Error::ConnectionRefused,
        EgressError::Broken(..) => Error::ConnectionTerminated,
        EgressError::Tls(..) => Error::TlsProtocolError,
        EgressError::TlsAlert(_, error) => {
            Error::TlsAlertReceived { alert_id: None, alert_message: Some(error.to_string()) }
        }
        EgressError::Certificate(..) => Error::TlsCertificateError,
        EgressError::Timeout { what: EXCHANGE | FIRST_BYTE, .. } => Error::HttpResponseTimeout,
        EgressError::Timeout { what: BETWEEN, .. } => Error::ConnectionReadTimeout,
        EgressError::Timeout { .. } => Error::ConnectionTimeout,
        EgressError::Http(_) | EgressError::Unfinished => Error::HttpProtocolError,
        EgressError::TooLarge("request") => Error::HttpRequestBodySize(None),
        EgressError::TooLarge(_) => Error::HttpResponseBodySize(None),
        EgressError::Encoding(encoding) => Error::HttpResponseContentCoding(Some(encoding)),
    }
}

/// An answer's body as the guest sees it.
struct Answer {
    body: EgressBody,
    mask: Option<Mask>,
    done: bool,
    _held: Held,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        loop {
            if this.done {
                return Poll::Ready(None);
            }
            let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
            let data = match frame {
                Some(Err(error)) => {
                    this.done = true;
                    return Poll::Ready(Some(Err(for_guest(error))));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => match &mut this.mask {
                        Some(mask) => Bytes::from(mask.push(&data)),
                        None => data,
                    },
                    // Trailers are optional in HTTP, and a place to hide things in: they are left out.
                    Err(_) => continue,
                },
                None => {
                    this.done = true;
                    this.mask.as_mut().map(|mask| Bytes::from(mask.finish())).unwrap_or_default()
                }
            };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
