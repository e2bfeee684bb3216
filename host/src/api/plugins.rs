//! `/api/v1/plugins`, and what a plugin's error is to a caller.

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, header},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::Caller,
    page::Listed,
    problem::{Fault, Problem, ProblemType, Result},
};
use crate::{
    app::App,
    authz::{Action, Context, Resource},
    plugins::{ManifestView, PluginError},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

/// List the installed plugins
///
/// Each with the JSON Schema of a connection's `config`, the secrets it needs and the capabilities it asks for.
#[utoipa::path(get, path = "/api/v1/plugins", tag = "Plugins", responses((status = OK, body = Listed<ManifestView>)))]
async fn list(State(app): State<App>, Caller(caller): Caller) -> Result<Json<Listed<ManifestView>>> {
    let organization = Resource::organization(caller.organization_id);
    app.require(&caller, Action::PluginRead, &organization, &Context::default()).await?;
    Ok(Json(Listed { items: app.plugins.manifests(), next_cursor: None }))
}

impl From<PluginError> for Problem {
    fn from(error: PluginError) -> Self {
        match &error {
            PluginError::Config(message) => Self::invalid(vec![Fault::new("/config", message)]),
            PluginError::Unavailable { retry_after: Some(wait), .. } => {
                Self::new(ProblemType::Upstream, error.to_string())
                    .with_header(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)))
            }
            _ => Self::new(ProblemType::Upstream, error.to_string()),
        }
    }
}
