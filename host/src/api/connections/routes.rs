//! The same routes for each kind of connection.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use super::body::{Checked, ConnectionChange, NewConnection, Shown};
use crate::{
    api::{
        extract::{Caller, IdempotencyKey, IfMatch, Input, Parameters, PathId},
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
///
/// `who` may change, read and check such a connection, as the platform's policies say; `more` is what creating, changing, deleting and
/// checking does for this kind beyond the others; `refused` are the problems of creating and changing, and of deleting.
macro_rules! routes_of {
    ($module:ident, $kind:ident, $tag:literal, $all:literal, $one:literal, $check:literal,
     [$thing:literal $things:literal $the:literal],
     operations [$create:ident $list:ident $get:ident $update:ident $delete:ident $check_one:ident],
     who [$changes:literal $reads:literal $checks:literal],
     more [$created:literal $changed:literal $deleted:literal $checked:literal],
     refused [$on_change:tt $on_delete:tt],
     examples [$new:tt $shown:tt]) => {
        mod $module {
            use utoipa_axum::routes;

            use super::*;

            pub(super) fn router() -> OpenApiRouter<App> {
                OpenApiRouter::new()
                    .routes(routes!($create, $list))
                    .routes(routes!($get, $update, $delete))
                    .routes(routes!($check_one))
            }

            #[utoipa::path(post, path = $all, tag = $tag, params(IdempotencyKey), summary = concat!("Create ", $thing),
                description = concat!("The configuration and the secrets are checked against what the plugin asks for", $created,
                    "; whether it works is not tried: `POST ", $check, "` does that. ", $changes),
                request_body(content = NewConnection, example = json!($new)),
                responses((status = CREATED, description = concat!($the, " was created."), body = Shown, example = json!($shown))),
                extensions(("x-problems" = json!($on_change))))]
            async fn $create(State(app): State<App>, Caller(caller): Caller, input: Input<NewConnection>) -> Result<Response> {
                super::super::create(app, caller, Kind::$kind, input).await
            }

            #[utoipa::path(get, path = $all, tag = $tag, params(Page), summary = concat!("List ", $things),
                description = concat!("Those that the caller may see, oldest first. Secrets are named, and never shown. ", $reads),
                responses((status = OK, description = concat!("A page of the ", $things, "."), body = Listed<Shown>)),
                extensions(("x-problems" = json!(["-denied"]))))]
            async fn $list(
                State(app): State<App>,
                Caller(caller): Caller,
                Parameters(page): Parameters<Page>,
            ) -> Result<Json<Listed<Shown>>> {
                super::super::list(app, caller, Kind::$kind, page).await
            }

            #[utoipa::path(get, path = $one, tag = $tag, params(("id" = Uuid, Path, description = concat!($the, "."))),
                summary = concat!("Read ", $thing),
                description = concat!("Secrets are named, and never shown. ", $reads),
                responses((status = OK, description = concat!($the, "."), body = Shown, example = json!($shown))))]
            async fn $get(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<Uuid>) -> Result<Response> {
                super::super::read(app, caller, Kind::$kind, id).await
            }

            #[utoipa::path(patch, path = $one, tag = $tag,
                params(("id" = Uuid, Path, description = concat!($the, ".")), IfMatch),
                request_body = ConnectionChange, summary = concat!("Change ", $thing),
                description = concat!("What is absent stays as it is; `config` and `secrets` are merged (RFC 7396). The plugin checks the                     result as it checks a new one, but where only the name, the environment or the labels change, or the connection is                     switched off: that is possible also where the plugin does not run.", $changed, " ", $changes),
                responses((status = OK, description = concat!($the, ", as it is from now on."), body = Shown, example = json!($shown))),
                extensions(("x-problems" = json!($on_change))))]
            async fn $update(
                State(app): State<App>,
                Caller(caller): Caller,
                PathId(id): PathId<Uuid>,
                if_match: IfMatch,
                input: Input<ConnectionChange>,
            ) -> Result<Response> {
                super::super::update(app, caller, (Kind::$kind, id), if_match, input.body).await
            }

            #[utoipa::path(delete, path = $one, tag = $tag,
                params(("id" = Uuid, Path, description = concat!($the, ".")), IfMatch),
                summary = concat!("Delete ", $thing), description = concat!($deleted, " ", $changes),
                responses((status = NO_CONTENT, description = concat!($the, " is deleted."))),
                extensions(("x-problems" = json!($on_delete))))]
            async fn $delete(
                State(app): State<App>,
                Caller(caller): Caller,
                PathId(id): PathId<Uuid>,
                if_match: IfMatch,
            ) -> Result<StatusCode> {
                super::super::remove(app, caller, (Kind::$kind, id), if_match).await
            }

            #[utoipa::path(post, path = $check, tag = $tag, params(("id" = Uuid, Path, description = concat!($the, "."))),
                summary = concat!("Check ", $thing),
                description = concat!($checked, " Changes nothing there; where it works, calls of the connection that were suspended go on.                     A connection is checked once at a time (409 meanwhile), and an organization's connections                     `plugin_checks_per_minute` times a minute. ", $checks),
                responses((status = OK, description = "It works.", body = Checked)),
                extensions(("x-problems" = json!(["conflict", "upstream"]))))]
            async fn $check_one(
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
    "/api/v1/identity-connections/{id}/check",
    ["an identity connection" "identity connections" "The identity connection"],
    operations [create_identity_connection list_identity_connections get_identity_connection update_identity_connection delete_identity_connection check_identity_connection],
    who [
        "Only owners may."
        "Owners, admins and auditors may read them, unless a policy says otherwise."
        "Owners and admins may, unless a policy says otherwise."
    ],
    more [
        ", and the plugin has to say where people sign in"
        " Where another provider signs people in from then on, the links of people to the former one are removed."
        "People can no longer sign in through it, and their links to it are removed; their accounts stay."
        "The plugin says where people sign in, and the server fetches what that provider publishes of itself."
    ],
    refused [["conflict", "upstream"] []],
    examples [
        {
            "name": "Company sign-in",
            "plugin": "oidc",
            "config": { "issuer": "https://login.example.com", "client_id": "kaizen" },
            "secrets": { "client-secret": "7Gk3pQ9vXw2m" },
        }
        {
            "id": "019f2a52-7b1c-7e40-8d26-1a2b3c4d5e6f",
            "organization_id": "019f2a40-11de-7c02-8f5a-6b7c8d9e0f10",
            "name": "Company sign-in",
            "plugin": "oidc",
            "plugin_version": null,
            "plugin_follows": "^1",
            "config": { "issuer": "https://login.example.com", "client_id": "kaizen" },
            "secrets": ["client-secret"],
            "active": true,
            "created_at": "2026-11-27T09:12:00.000000Z",
            "updated_at": "2026-11-27T09:12:00.000000Z",
        }
    ]
);
routes_of!(
    gateways,
    DeploymentTarget,
    "Gateways",
    "/api/v1/gateways",
    "/api/v1/gateways/{id}",
    "/api/v1/gateways/{id}/check",
    ["a gateway" "gateways" "The gateway"],
    operations [create_gateway list_gateways get_gateway update_gateway delete_gateway check_gateway],
    who [
        "Owners and admins may, unless a policy says otherwise."
        "Owners, admins, developers, viewers and auditors may read them, unless a policy says otherwise."
        "Owners, admins and developers may, unless a policy says otherwise."
    ],
    more [
        ""
        ""
        "Its deployments that are over are deleted with it, and the audit trail still tells of them. Refused with 409 while one is          not over: the answer names these and says what to do."
        "The plugin asks the gateway whether it can be reached and takes the credentials."
    ],
    refused [["conflict"] ["conflict"]],
    examples [
        {
            "name": "Production gateway",
            "plugin": "nexus",
            "config": { "api_url": "https://nexus.example.com" },
            "secrets": { "api-key": "nx_live_2f6c1e9b" },
            "environment": "production",
            "labels": { "region": "eu" },
        }
        {
            "id": "019f2a58-0c4d-7b1e-9a37-5e6f708192a3",
            "organization_id": "019f2a40-11de-7c02-8f5a-6b7c8d9e0f10",
            "name": "Production gateway",
            "plugin": "nexus",
            "plugin_version": null,
            "plugin_follows": "^1",
            "config": { "api_url": "https://nexus.example.com" },
            "secrets": ["api-key"],
            "active": true,
            "environment": "production",
            "labels": { "region": "eu" },
            "created_at": "2026-11-27T09:30:00.000000Z",
            "updated_at": "2026-11-27T09:30:00.000000Z",
        }
    ]
);
routes_of!(
    audit_sinks,
    AuditSink,
    "Audit sinks",
    "/api/v1/audit-sinks",
    "/api/v1/audit-sinks/{id}",
    "/api/v1/audit-sinks/{id}/check",
    ["an audit sink" "audit sinks" "The audit sink"],
    operations [create_audit_sink list_audit_sinks get_audit_sink update_audit_sink delete_audit_sink check_audit_sink],
    who [
        "Owners and admins may, unless a policy says otherwise."
        "Owners, admins and auditors may read them, unless a policy says otherwise."
        "Owners and admins may, unless a policy says otherwise."
    ],
    more [
        ""
        ""
        "No more events are sent to it; the audit trail keeps those that it did not get."
        "The plugin asks the other system whether it can be reached and takes the credentials."
    ],
    refused [["conflict"] []],
    examples [
        {
            "name": "Security log",
            "plugin": "webhook",
            "config": { "url": "https://siem.example.com/kaizen" },
            "secrets": { "signing-key": "whsec_c2lnbmluZy1rZXktZXhhbXBsZQ==" },
        }
        {
            "id": "019f2a60-5d2e-7f3a-8c19-7f8091a2b3c4",
            "organization_id": "019f2a40-11de-7c02-8f5a-6b7c8d9e0f10",
            "name": "Security log",
            "plugin": "webhook",
            "plugin_version": null,
            "plugin_follows": "^1",
            "config": { "url": "https://siem.example.com/kaizen" },
            "secrets": ["signing-key"],
            "active": true,
            "created_at": "2026-11-27T10:02:00.000000Z",
            "updated_at": "2026-11-27T10:02:00.000000Z",
        }
    ]
);
