//! `Idempotency-Key` on every POST that creates: the second of two equal requests gets the first one's answer.
//!
//! ```ignore
//! let mut tx = app.store.begin().await?;
//! let once = match Once::claim(&app, &mut tx, &caller, input.idempotency).await? {
//!     Claimed::Fresh(once) => once,
//!     Claimed::Answered(response) => return Ok(response),
//! };
//! … the change …
//! let response = once.created(&mut tx, &body, revision).await?;
//! change(&app, tx, …).await?;
//! Ok(response)
//! ```

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    extract::{IdempotencyKey, etag},
    problem::{Problem, ProblemType, Result},
};
use crate::{
    app::App,
    domain::{
        id::{OrganizationId, UserId},
        principal::Principal,
    },
    store::{Tx, idempotency},
};

/// A claim on a key, or none where no key was sent.
pub struct Once(Option<(OrganizationId, UserId, String)>);

/// What a claim finds.
pub enum Claimed {
    /// Go on.
    Fresh(Once),
    /// This was done before; here is what was answered.
    Answered(Response),
}

impl Once {
    /// Claims the key within the transaction.
    ///
    /// # Errors
    /// 422 if the key was used for another request; as the database says.
    pub async fn claim(app: &App, tx: &mut Tx, caller: &Principal, key: Option<IdempotencyKey>) -> Result<Claimed> {
        let Some(IdempotencyKey { key, request }) = key else { return Ok(Claimed::Fresh(Self(None))) };
        let (organization, user) = (caller.organization_id, caller.user_id);
        let found = idempotency::claim(tx, organization, user, &key, &request, app.clock.now()).await?;
        match found {
            None => Ok(Claimed::Fresh(Self(Some((organization, user, key))))),
            Some(answer) if answer.request == request => {
                let status = u16::try_from(answer.status).ok().and_then(|s| StatusCode::from_u16(s).ok());
                let mut response = json(status.unwrap_or(StatusCode::OK), answer.body, answer.revision);
                response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
                Ok(Claimed::Answered(response))
            }
            Some(_) => Err(Problem::new(
                ProblemType::KeyReused,
                "This Idempotency-Key came with another request before; use a new one.",
            )),
        }
    }

    /// 201 with the new thing and its ETag.
    ///
    /// # Errors
    /// As the database says.
    pub async fn created(self, tx: &mut Tx, body: &impl Serialize, revision: i64) -> Result<Response> {
        self.finish(tx, (StatusCode::CREATED, Some(revision)), body).await
    }

    /// Any answer that has no revision.
    ///
    /// # Errors
    /// As the database says.
    pub async fn answer(self, tx: &mut Tx, status: StatusCode, body: &impl Serialize) -> Result<Response> {
        self.finish(tx, (status, None), body).await
    }

    async fn finish(
        self,
        tx: &mut Tx,
        (status, revision): (StatusCode, Option<i64>),
        body: &impl Serialize,
    ) -> Result<Response> {
        let text = serde_json::to_string(body).map_err(Problem::internal)?;
        if let Some((organization, user, key)) = self.0 {
            idempotency::answer(tx, organization, user, &key, (status.as_u16(), revision), &text).await?;
        }
        Ok(json(status, text, revision))
    }
}

fn json(status: StatusCode, text: String, revision: Option<i64>) -> Response {
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (status, json, revision.map(|revision| [etag(revision)]), text).into_response()
}
