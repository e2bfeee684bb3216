//! The same routes for each kind of connection.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use super::body::{Checked, ConnectionChange, NewConnection, Shown};
use crate::{
    api::{
        extract::{Caller, IfMatch, Input, Parameters, PathId},
        page::{Listed, Page},
        problem::Result,
    },
    app::App,
    domain::connection::Kind,
};

/// The routes of all kinds.
pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().merge(identity_connections::router()).merge(gateways::router()).merge(audit_sinks::router())
}

/// The routes of one kind.
macro_rules! routes_of {
    ($module:ident, $kind:ident, $tag:literal, $all:literal, $one:literal, $check:literal) => {
        mod $module {
            use utoipa_axum::routes;

            use super::*;

            pub(super) fn router() -> OpenApiRouter<App> {
                OpenApiRouter::new()
                    .routes(routes!(create, list))
                    .routes(routes!(read, update, remove))
                    .routes(routes!(check))
            }

            /// Create one
            #[utoipa::path(post, path = $all, tag = $tag, request_body = NewConnection,
                responses((status = CREATED, body = Shown)))]
            async fn create(State(app): State<App>, Caller(caller): Caller, input: Input<NewConnection>) -> Result<Response> {
                super::super::create(app, caller, Kind::$kind, input).await
            }

            /// List
            #[utoipa::path(get, path = $all, tag = $tag, params(Page), responses((status = OK, body = Listed<Shown>)))]
            async fn list(
                State(app): State<App>,
                Caller(caller): Caller,
                Parameters(page): Parameters<Page>,
            ) -> Result<Json<Listed<Shown>>> {
                super::super::list(app, caller, Kind::$kind, page).await
            }

            /// Read one
            #[utoipa::path(get, path = $one, tag = $tag, params(("id" = Uuid, Path)), responses((status = OK, body = Shown)))]
            async fn read(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<Uuid>) -> Result<Response> {
                super::super::read(app, caller, Kind::$kind, id).await
            }

            /// Change one
            #[utoipa::path(patch, path = $one, tag = $tag, params(("id" = Uuid, Path)), request_body = ConnectionChange,
                responses((status = OK, body = Shown)))]
            async fn update(
                State(app): State<App>,
                Caller(caller): Caller,
                PathId(id): PathId<Uuid>,
                if_match: IfMatch,
                input: Input<ConnectionChange>,
            ) -> Result<Response> {
                super::super::update(app, caller, (Kind::$kind, id), if_match, input.body).await
            }

            /// Delete one
            ///
            /// A gateway with its deployments that are over, of which the audit trail still tells; refused while one is not.
            #[utoipa::path(delete, path = $one, tag = $tag, params(("id" = Uuid, Path)), responses((status = NO_CONTENT)))]
            async fn remove(
                State(app): State<App>,
                Caller(caller): Caller,
                PathId(id): PathId<Uuid>,
                if_match: IfMatch,
            ) -> Result<StatusCode> {
                super::super::remove(app, caller, (Kind::$kind, id), if_match).await
            }

            /// Ask the far side whether it works
            #[utoipa::path(post, path = $check, tag = $tag, params(("id" = Uuid, Path)), responses((status = OK, body = Checked)))]
            async fn check(
                State(app): State<App>,
                Caller(caller): Caller,
                PathId(id): PathId<Uuid>,
            ) -> Result<Json<Checked>> {
                super::super::check(app, caller, Kind::$kind, id).await
            }
        }
    };
}

routes_of!(
    identity_connections,
    IdentityProvider,
    "Identity connections",
    "/api/v1/identity-connections",
    "/api/v1/identity-connections/{id}",
    "/api/v1/identity-connections/{id}/check"
);
routes_of!(
    gateways,
    DeploymentTarget,
    "Gateways",
    "/api/v1/gateways",
    "/api/v1/gateways/{id}",
    "/api/v1/gateways/{id}/check"
);
routes_of!(
    audit_sinks,
    AuditSink,
    "Audit sinks",
    "/api/v1/audit-sinks",
    "/api/v1/audit-sinks/{id}",
    "/api/v1/audit-sinks/{id}/check"
);
