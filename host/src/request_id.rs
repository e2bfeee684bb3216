//! The ids of the request that is being answered: for the log, the problem and the audit trail.

use serde_json::Value;
use tokio::task::futures::TaskLocalFuture;

/// By which ids a request is found.
#[derive(Debug, Clone)]
pub struct RequestIds {
    /// The server's own.
    pub id: String,
    /// What its client calls it, if it gave it a harmless name.
    pub client_id: Option<String>,
}

tokio::task_local! {
    static CURRENT: RequestIds;
}

impl RequestIds {
    /// Answers the request. A task that is spawned meanwhile is no part of it.
    pub fn scope<F: Future>(self, answer: F) -> TaskLocalFuture<Self, F> {
        CURRENT.scope(self, answer)
    }
}

/// The server's id of the request that is being answered; empty where none is.
pub fn request_id() -> String {
    CURRENT.try_with(|ids| ids.id.clone()).unwrap_or_default()
}

/// Puts the ids of the request that is being answered, if one is, into the details of an audit event.
pub fn put_into(details: &mut Value) {
    let Some(details) = details.as_object_mut() else { return };
    // Outside of a request there is nothing to tell.
    let _ = CURRENT.try_with(|ids| {
        details.insert("request_id".into(), ids.id.clone().into());
        if let Some(client_id) = &ids.client_id {
            details.insert("client_request_id".into(), client_id.clone().into());
        }
    });
}
