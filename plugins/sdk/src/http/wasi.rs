//! The request's way through `wasi:http` 0.2. The server's side of it checks grants, resolves names and puts secrets
//! in.

use std::time::{Duration, Instant};

use wasip2::clocks::monotonic_clock;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    self as raw, ErrorCode, Fields, IncomingBody, OutgoingBody, OutgoingRequest, RequestOptions,
};
use wasip2::io::poll::{Pollable, poll};
use wasip2::io::streams::StreamError;

use super::{Error, Method, Response, Sent};

/// How much is read or written at once.
const CHUNK: u64 = 64 * 1024;

/// When the whole exchange has to be over.
struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    /// Blocks until `ready` is, or the time is over.
    fn wait(&self, ready: &Pollable) -> Result<(), Error> {
        let left = self.at.saturating_duration_since(Instant::now());
        let timer = monotonic_clock::subscribe_duration(nanoseconds(left));
        if poll(&[ready, &timer]).contains(&0) {
            Ok(())
        } else {
            Err(Error::Timeout(format!("no complete answer within {} ms", self.timeout.as_millis())))
        }
    }
}

pub(super) fn send(sent: &Sent) -> Result<Response, Error> {
    let deadline = Deadline { at: Instant::now() + sent.timeout, timeout: sent.timeout };
    let request = prepare(sent)?;
    let body = request.body().map_err(|()| Error::Request("the body can't be opened".to_owned()))?;
    let pending = outgoing_handler::handle(request, Some(options(sent))).map_err(|code| from_code(sent, &code))?;
    // A far side that answers before it has read everything closes the stream: its answer tells why.
    write(body, &sent.body, &deadline)?;
    let response = loop {
        match pending.get() {
            Some(Ok(Ok(response))) => break response,
            Some(Ok(Err(code))) => return Err(from_code(sent, &code)),
            Some(Err(())) => return Err(Error::Protocol("the answer was taken twice".to_owned())),
            None => deadline.wait(&pending.subscribe())?,
        }
    };
    let headers = response
        .headers()
        .entries()
        .into_iter()
        .map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned()))
        .collect();
    let status = response.status();
    let body = response.consume().map_err(|()| Error::Protocol("the answer has no body".to_owned()))?;
    Ok(Response { status, headers, body: read(sent, &body, &deadline)? })
}

fn prepare(sent: &Sent) -> Result<OutgoingRequest, Error> {
    let fields = Fields::new();
    let add = |name: &str, value: &str| {
        fields
            .append(name, value.as_bytes())
            .map_err(|_| Error::Request(format!("header `{name}` is not the plugin's to set")))
    };
    for (name, value) in &sent.headers {
        add(name, value)?;
    }
    if !sent.body.is_empty() || matches!(sent.method, Method::Post | Method::Put | Method::Patch) {
        add("content-length", &sent.body.len().to_string())?;
    }
    let request = OutgoingRequest::new(fields);
    let method = match sent.method {
        Method::Get => raw::Method::Get,
        Method::Head => raw::Method::Head,
        Method::Post => raw::Method::Post,
        Method::Put => raw::Method::Put,
        Method::Patch => raw::Method::Patch,
        Method::Delete => raw::Method::Delete,
    };
    let scheme = if sent.url.is_https() { raw::Scheme::Https } else { raw::Scheme::Http };
    request
        .set_method(&method)
        .and_then(|()| request.set_scheme(Some(&scheme)))
        .and_then(|()| request.set_authority(Some(&sent.url.authority())))
        .and_then(|()| request.set_path_with_query(Some(&sent.url.path_and_query())))
        .map_err(|()| Error::Request(format!("the server can't send to {}", sent.url.origin())))?;
    Ok(request)
}

/// What a host does not support it ignores: the deadline holds anyway.
fn options(sent: &Sent) -> RequestOptions {
    let options = RequestOptions::new();
    let _ = options.set_connect_timeout(Some(nanoseconds(sent.connect_timeout)));
    let _ = options.set_first_byte_timeout(Some(nanoseconds(sent.timeout)));
    let _ = options.set_between_bytes_timeout(Some(nanoseconds(sent.timeout)));
    options
}

fn write(body: OutgoingBody, mut rest: &[u8], deadline: &Deadline) -> Result<(), Error> {
    if !rest.is_empty() {
        let Ok(stream) = body.write() else { return Err(Error::Request("the body can't be written".to_owned())) };
        while !rest.is_empty() {
            let Ok(room) = stream.check_write() else { return Ok(()) };
            if room == 0 {
                deadline.wait(&stream.subscribe())?;
                continue;
            }
            let most = usize::try_from(room.min(CHUNK)).unwrap_or(rest.len()).min(rest.len());
            let (now, later) = rest.split_at(most);
            if stream.write(now).is_err() {
                return Ok(());
            }
            rest = later;
        }
        if stream.flush().is_ok() {
            deadline.wait(&stream.subscribe())?;
        }
    }
    // A failure here shows in the answer, or in there being none.
    let _ = OutgoingBody::finish(body, None);
    Ok(())
}

fn read(sent: &Sent, body: &IncomingBody, deadline: &Deadline) -> Result<Vec<u8>, Error> {
    let stream = body.stream().map_err(|()| Error::Protocol("the answer's body can't be read".to_owned()))?;
    let mut taken = Vec::new();
    loop {
        match stream.read(CHUNK) {
            Ok(chunk) if chunk.is_empty() => deadline.wait(&stream.subscribe())?,
            Ok(chunk) => {
                if taken.len() + chunk.len() > sent.max_response {
                    return Err(Error::TooLarge { limit: sent.max_response });
                }
                taken.extend_from_slice(&chunk);
            }
            Err(StreamError::Closed) => return Ok(taken),
            Err(StreamError::LastOperationFailed(error)) => {
                return Err(match raw::http_error_code(&error) {
                    Some(code) => from_code(sent, &code),
                    // wasmtime's host has no code for what ends an answer under way, only words.
                    None => {
                        let why: String =
                            error.to_debug_string().lines().next().unwrap_or_default().chars().take(200).collect();
                        Error::Connect(format!("the answer of {} broke off: {why}", sent.url.authority()))
                    }
                });
            }
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn from_code(sent: &Sent, code: &ErrorCode) -> Error {
    let far = sent.url.authority();
    match code {
        ErrorCode::DnsTimeout | ErrorCode::DnsError(_) | ErrorCode::DestinationNotFound => {
            Error::Connect(format!("the name {} can't be resolved", sent.url.host()))
        }
        ErrorCode::ConnectionRefused => Error::Connect(format!("{far} refuses connections")),
        ErrorCode::DestinationUnavailable | ErrorCode::ConnectionLimitReached => {
            Error::Connect(format!("{far} can't be reached"))
        }
        ErrorCode::ConnectionTerminated | ErrorCode::HttpResponseIncomplete => {
            Error::Connect(format!("{far} broke the connection off"))
        }
        // Whose limit it was, the connection's or the request's, is not told reliably.
        ErrorCode::ConnectionTimeout
        | ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::HttpResponseTimeout => Error::Timeout(format!("{far} did not answer in time")),
        ErrorCode::HttpRequestDenied => {
            Error::Denied(format!("this plugin is not allowed to reach {}", sent.url.origin()))
        }
        ErrorCode::DestinationIpProhibited | ErrorCode::DestinationIpUnroutable => {
            Error::Denied(format!("{far} is at an address that plugins may not reach"))
        }
        ErrorCode::TlsCertificateError => Error::Denied(format!("the certificate of {far} is not trusted")),
        ErrorCode::TlsProtocolError | ErrorCode::TlsAlertReceived(_) => {
            Error::Protocol(format!("{far} does not speak TLS as it should"))
        }
        ErrorCode::HttpResponseContentCoding(_) => {
            Error::Body(format!("{far} compresses its answer although it was asked not to"))
        }
        ErrorCode::HttpResponseBodySize(_) => Error::TooLarge { limit: sent.max_response },
        ErrorCode::HttpRequestMethodInvalid
        | ErrorCode::HttpRequestUriInvalid
        | ErrorCode::HttpRequestUriTooLong
        | ErrorCode::HttpRequestLengthRequired
        | ErrorCode::HttpRequestBodySize(_)
        | ErrorCode::HttpRequestHeaderSectionSize(_)
        | ErrorCode::HttpRequestHeaderSize(_)
        | ErrorCode::HttpRequestTrailerSectionSize(_)
        | ErrorCode::HttpRequestTrailerSize(_) => {
            Error::Request(format!("the server can't send this request to {far}: {code:?}"))
        }
        ErrorCode::InternalError(Some(why)) => Error::Connect(format!("{far}: {why}")),
        other => Error::Protocol(format!("the exchange with {far} failed: {other:?}")),
    }
}
