//! The OpenAPI document (3.1), and a page to read it that needs no outside host.

use axum::{
    Router,
    body::Bytes,
    http::{HeaderValue, header},
    routing::get,
};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::{
    OpenApi, ToSchema,
    openapi::{
        Components, Content, Info, License, OpenApi as Document, Ref, RefOr, Response, ResponseBuilder,
        path::Operation,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::problem::{ProblemBody, ProblemType};
use crate::app::App;

#[derive(OpenApi)]
#[openapi(components(schemas(ProblemBody)))]
struct Base;

/// What the document begins with.
pub fn base() -> Document {
    let mut document = Base::openapi();
    document.info = Info::new("Kaizen Studio", env!("CARGO_PKG_VERSION"));
    document.info.description = Some(
        "The control plane: agents, their canvases and versions, deployments to gateways, policies and the audit trail.\n\n\
         Lists take `limit` and `cursor`. A query parameter that a route does not name, or that is given twice, is refused. What is \
         edited has an `ETag`; send it in `If-Match`. A POST that creates takes an `Idempotency-Key`. Errors are problem documents (RFC 9457)."
            .to_owned(),
    );
    let mut license = License::new("Apache-2.0");
    license.identifier = Some("Apache-2.0".to_owned());
    document.info.license = Some(license);
    let components = document.components.get_or_insert_with(Components::new);
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let cookie = ApiKey::Cookie(ApiKeyValue::new("__Host-kaizen"));
    components.add_security_scheme("cookie", SecurityScheme::ApiKey(cookie));
    document.security = Some(vec![
        SecurityRequirement::new("bearer", Vec::<String>::new()),
        SecurityRequirement::new("cookie", Vec::<String>::new()),
    ]);
    document
}

/// Adds to every operation what all have in common: the problem document.
pub fn finish(mut document: Document) -> Document {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            problems(operation);
        }
    }
    document
}

fn problems(operation: &mut Operation) {
    let codes: Vec<String> = ProblemType::ALL
        .iter()
        .map(|kind| {
            let (status, code, title) = kind.parts();
            format!("- `{code}` ({}): {title}", status.as_u16())
        })
        .collect();
    let schema = RefOr::Ref(Ref::from_schema_name(ProblemBody::name()));
    let response: Response = ResponseBuilder::new()
        .description(format!("A problem document; its `code` is one of\n{}", codes.join("\n")))
        .content("application/problem+json", Content::new(Some(schema)))
        .build();
    operation.responses.responses.entry("default".to_owned()).or_insert_with(|| RefOr::T(response));
}

/// What the page may load: of this host only. Swagger UI styles its elements in place, and draws arrows from `data:`.
const PAGE_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; \
                           form-action 'self'; frame-ancestors 'none'";

/// Where the document is.
const DOCUMENT: &str = "/api/openapi.json";

/// The document and the page.
pub fn pages(document: Document) -> Router<App> {
    // Unless told otherwise, the page has the document validated by validator.swagger.io wherever it is not on localhost.
    let config = Config::new([DOCUMENT]).validator_url("none");
    let page = SwaggerUi::new("/api/docs").config(config);
    let policy = HeaderValue::from_static(PAGE_POLICY);
    // Written once, and shared by all answers: anybody may ask for it, and take as long as they like to read it.
    let json = Bytes::from(document.to_json().unwrap_or_default());
    let json = get(move || async move { ([(header::CONTENT_TYPE, "application/json")], json) });
    Router::from(page)
        .route(DOCUMENT, json)
        .layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, policy))
}

/// The finished document, for `kaizen openapi`.
pub fn document() -> Document {
    finish(super::routes().into_openapi())
}
