//! What a browser is shown where a sign-in elsewhere did not work out.

use std::time::Duration;

use axum::{
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
};

use crate::{
    identity::{IssueError, code::ProviderError, sso::SsoError},
    plugins::PluginError,
    request_id::request_id,
    store::StoreError,
};

/// A page that says what went wrong, to a person in a browser.
#[derive(Debug)]
pub(super) struct Page {
    status: StatusCode,
    title: &'static str,
    text: String,
    /// Seconds.
    retry_after: Option<u64>,
}

impl Page {
    fn new(status: StatusCode, title: &'static str, text: impl Into<String>) -> Self {
        Self { status, title, text: text.into(), retry_after: None }
    }

    pub(super) fn limited(wait: Duration) -> Self {
        let page = Self::new(StatusCode::TOO_MANY_REQUESTS, "Too many sign-ins", "Wait a minute, then try again.");
        Self { retry_after: Some(wait.as_secs() + 1), ..page }
    }

    pub(super) fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(error = %format!("{error:#}"), "internal error");
        let text = "Something went wrong here. The operator finds the reason in the server's log, by the number below.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Sign-in failed", text)
    }
}

impl From<SsoError> for Page {
    fn from(error: SsoError) -> Self {
        let again = "Your identity provider does not answer as it should. Try again in a moment.";
        let settings = "The connection to your identity provider does not work as it is set up. Tell your administrator the number below.";
        let failed = |status, text: &str| Self::new(status, "Sign-in failed", text);
        match &error {
            SsoError::NotFound => {
                let text =
                    "This address does not lead to an identity provider, or the connection to it is switched off.";
                Self::new(StatusCode::NOT_FOUND, "No such sign-in", text)
            }
            SsoError::Changed => {
                let text =
                    "The connection to your identity provider was changed since you began to sign in. Start again.";
                Self::new(StatusCode::CONFLICT, "Not signed in", text)
            }
            SsoError::ReturnTo => {
                let text = "The link you followed wants to lead to another site after signing in. That is not allowed.";
                Self::new(StatusCode::BAD_REQUEST, "This link is not safe", text)
            }
            SsoError::State => {
                let text = "It took too long, was begun in another browser, or is done already. Start again.";
                Self::new(StatusCode::BAD_REQUEST, "This sign-in is not under way", text)
            }
            SsoError::Refused { error, .. } => {
                let text = format!(
                    "Your identity provider did not sign you in: {error}. Your administrator finds what it said in the audit trail, \
                     by the number below."
                );
                Self::new(StatusCode::FORBIDDEN, "Not signed in", text)
            }
            SsoError::Provider(ProviderError::Untrusted(_)) => {
                let text = "The answer of your identity provider could not be verified. Start again; if it stays so, tell your \
                            administrator the number below.";
                Self::new(StatusCode::FORBIDDEN, "Not signed in", text)
            }
            SsoError::Provider(error) if error.permanent() => failed(StatusCode::BAD_GATEWAY, settings),
            SsoError::Provider(error) if error.code() == "provider_unavailable" => failed(
                StatusCode::SERVICE_UNAVAILABLE,
                "Your identity provider cannot sign people in now. Try again in a while.",
            ),
            SsoError::Provider(_)
            | SsoError::Plugin(PluginError::Unavailable { .. } | PluginError::Postponed { .. }) => {
                failed(StatusCode::BAD_GATEWAY, again)
            }
            SsoError::Plugin(_) | SsoError::Config(_) => failed(StatusCode::BAD_GATEWAY, settings),
            SsoError::Timeout => failed(
                StatusCode::GATEWAY_TIMEOUT,
                "Your identity provider took too long to answer. You are not signed in; try again in a moment.",
            ),
            SsoError::Refusal(refusal) => Self::new(StatusCode::FORBIDDEN, "Not signed in", refusal.to_string()),
            SsoError::Issue(IssueError::Store(StoreError::Unavailable(_))) => {
                let text = "The server's database does not answer. You are not signed in; try again in a moment.";
                Self { retry_after: Some(1), ..failed(StatusCode::SERVICE_UNAVAILABLE, text) }
            }
            SsoError::Issue(IssueError::Store(StoreError::Unwritable(..))) => {
                let text = "The server's database takes no changes at the moment, and signing in is one. Try again in a moment.";
                Self { retry_after: Some(5), ..failed(StatusCode::SERVICE_UNAVAILABLE, text) }
            }
            SsoError::Issue(_) => Self::internal(&error),
        }
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let (title, text, id) = (escape(self.title), escape(&self.text), escape(&request_id()));
        let html = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>{title}</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1rem}}\
             small{{color:#666}}</style><h1>{title}</h1><p>{text}</p><p><small>{id}</small></p></html>"
        );
        let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
        let mut response = (self.status, [(header::CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Text as HTML.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut html, c| {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
        html
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_provider_says_cannot_become_markup() {
        let error = "<script>alert(1)</script>\"'&".to_owned();
        let page = Page::from(SsoError::Refused { error, description: Some("<script>alert(2)</script>".into()) });
        let response = page.into_response();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        assert!(policy.contains("default-src 'none'"));
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let html = String::from_utf8(body.to_vec()).unwrap();
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"), "{html}");
        assert!(!html.contains("<script") && !html.contains("alert(2)"));
    }
}
