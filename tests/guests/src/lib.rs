//! What the guests have in common: one request through `wasi:http`, as raw as it comes.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, FutureIncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions, Scheme,
};
use wasip2::io::streams::StreamError;

/// A request; whatever a guest puts here goes to the host as it is.
pub struct Get<'a> {
    /// Otherwise `GET`, or `POST` with a body.
    pub method: Option<Method>,
    pub authority: &'a str,
    pub path: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a str,
    /// Milliseconds to the answer's head, and between its parts.
    pub first_byte: Option<u64>,
    pub between: Option<u64>,
}

/// Towards a host, with nothing in it.
pub fn get(authority: &str) -> Get<'_> {
    Get { method: None, authority, path: "/", headers: &[], body: "", first_byte: None, between: None }
}

/// An answer: status, headers as `name: value` lines, body.
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Get<'_> {
    /// Sends it by plain HTTP; the answer is still to come.
    pub fn begin(&self) -> Result<FutureIncomingResponse, String> {
        let fields = Fields::new();
        for (name, value) in self.headers {
            fields.append(name, value.as_bytes()).map_err(|error| format!("header: {error:?}"))?;
        }
        let request = OutgoingRequest::new(fields);
        let usual = if self.body.is_empty() { Method::Get } else { Method::Post };
        let method = self.method.clone().unwrap_or(usual);
        request.set_method(&method).map_err(|()| "method")?;
        request.set_scheme(Some(&Scheme::Http)).map_err(|()| "scheme")?;
        request.set_authority(Some(self.authority)).map_err(|()| "authority")?;
        request.set_path_with_query(Some(self.path)).map_err(|()| "path")?;
        let body = request.body().map_err(|()| "body")?;
        let options = RequestOptions::new();
        let nanoseconds = |milliseconds: Option<u64>| milliseconds.map(|milliseconds| milliseconds * 1_000_000);
        options.set_first_byte_timeout(nanoseconds(self.first_byte)).map_err(|()| "options")?;
        options.set_between_bytes_timeout(nanoseconds(self.between)).map_err(|()| "options")?;
        let pending = outgoing_handler::handle(request, Some(options)).map_err(|code| format!("{code:?}"))?;
        if !self.body.is_empty() {
            let stream = body.write().map_err(|()| "body")?;
            stream.blocking_write_and_flush(self.body.as_bytes()).map_err(|error| format!("{error:?}"))?;
        }
        OutgoingBody::finish(body, None).map_err(|code| format!("{code:?}"))?;
        Ok(pending)
    }

    /// Sends it and waits for the answer.
    pub fn send(&self) -> Result<Answer, String> {
        let pending = self.begin()?;
        pending.subscribe().block();
        let answer = match pending.get() {
            Some(Ok(Ok(answer))) => answer,
            Some(Ok(Err(code))) => return Err(format!("{code:?}")),
            _ => return Err("no answer".to_owned()),
        };
        let entries = answer.headers().entries();
        let headers = entries.iter().map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value)));
        let headers = headers.collect();
        let incoming = answer.consume().map_err(|()| "body")?;
        let stream = incoming.stream().map_err(|()| "body")?;
        let mut body = Vec::new();
        loop {
            match stream.blocking_read(64 << 10) {
                Ok(chunk) => body.extend(chunk),
                Err(StreamError::Closed) => break,
                Err(StreamError::LastOperationFailed(error)) => {
                    return Err(error.to_debug_string());
                }
            }
        }
        Ok(Answer { status: answer.status(), headers, body: String::from_utf8_lossy(&body).into_owned() })
    }

    /// Sends it and prints what came of it, after `what`.
    pub fn tell(&self, what: &str) {
        match self.send() {
            Ok(answer) => println!("{what}: {} {}", answer.status, answer.body),
            Err(error) => println!("{what}: refused {error}"),
        }
    }
}
