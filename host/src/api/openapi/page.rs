//! `/api/openapi.json` and `/api/docs`: the document, and a page that shows it.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::Path,
    http::{HeaderValue, header},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use serde_json::Value;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa_swagger_ui::{Config, serve};

use crate::{api::problem::Problem, app::App};

/// What the page may load: of this host only. Swagger UI styles its elements in place, and draws arrows from `data:`.
const PAGE_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; \
                           form-action 'self'; frame-ancestors 'none'";

/// Where the document is.
const DOCUMENT: &str = "/api/openapi.json";

/// Swagger UI's own page, but for its name.
const PAGE: &str = r#"<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="UTF-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>Kaizen Studio API</title>
    <link rel="stylesheet" type="text/css" href="./swagger-ui.css">
    <link rel="stylesheet" type="text/css" href="index.css">
    <link rel="icon" type="image/png" href="./favicon-32x32.png" sizes="32x32">
  </head>
  <body>
    <div id="swagger-ui"></div>
    <script src="./swagger-ui-bundle.js" charset="UTF-8"></script>
    <script src="./swagger-ui-standalone-preset.js" charset="UTF-8"></script>
    <script src="./swagger-initializer.js" charset="UTF-8"></script>
  </body>
</html>
"#;

/// The document and the page.
pub fn pages(document: &Value) -> Router<App> {
    // Unless told otherwise, the page has the document validated by validator.swagger.io wherever it is not on localhost.
    let config = Config::new([DOCUMENT]).validator_url("none").display_operation_id(true).filter(true);
    let config = Arc::new(config);
    let file = async move |Path(file): Path<String>| asset(&file, config);
    let policy = HeaderValue::from_static(PAGE_POLICY);
    // Written once, and shared by all answers: anybody may ask for it, and take as long as they like to read it.
    let json = Bytes::from(document.to_string());
    let json = get(move || async move { ([(header::CONTENT_TYPE, "application/json")], json) });
    Router::new()
        .route("/api/docs", get(async || Redirect::to("/api/docs/")))
        .route("/api/docs/", get(async || Html(PAGE)))
        .route("/api/docs/{*file}", get(file))
        .route(DOCUMENT, json)
        .layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, policy))
}

/// A file of Swagger UI, which the binary has in it.
fn asset(file: &str, config: Arc<Config<'static>>) -> Response {
    match serve(file, config) {
        Ok(Some(file)) => {
            let encoding = file.gzpipped.then_some([(header::CONTENT_ENCODING, "gzip")]);
            ([(header::CONTENT_TYPE, file.content_type)], encoding, file.bytes.into_owned()).into_response()
        }
        Ok(None) => Problem::not_found("file of the page").into_response(),
        Err(error) => Problem::internal(error).into_response(),
    }
}
