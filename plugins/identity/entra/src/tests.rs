use std::time::Duration;

use kaizen_plugin::http::{self, Response};
use kaizen_plugin::testing;
use serde_json::json;

use super::*;

const TENANT: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";

fn call(more: Value) -> Call<Config> {
    let mut config = json!({"tenant_id": TENANT, "client_id": "app"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    testing::call::<Entra>(&config.to_string())
}

fn grant(more: Value) -> Grant {
    let mut claims = json!({"sub": "pairwise", "oid": "ada-oid", "tid": TENANT, "name": "Ada"});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Grant { claims: claims.as_object().unwrap().clone(), ..Grant::default() }
}

fn identify(config: Value, claims: Value) -> Result<Identity> {
    Entra::identify(&call(config), &grant(claims))
}

#[test]
fn the_issuer_is_the_tenants_own() {
    let Ok(Protocol::Oidc { issuer, scopes, .. }) = Entra::begin(&call(json!({}))) else { panic!() };
    assert_eq!(issuer, format!("https://login.microsoftonline.com/{TENANT}/v2.0"));
    assert_eq!(scopes, ["openid", "profile", "email", "https://graph.microsoft.com/User.Read"]);
    let government = json!({
        "tenant_id": TENANT.to_uppercase(),
        "authority": "https://login.microsoftonline.us/",
        "graph_url": "https://graph.microsoft.us",
    });
    let Ok(Protocol::Oidc { issuer, scopes, .. }) = Entra::begin(&call(government)) else { panic!() };
    assert_eq!(issuer, format!("https://login.microsoftonline.us/{TENANT}/v2.0"));
    assert_eq!(scopes.last().unwrap(), "https://graph.microsoft.us/User.Read");
}

#[test]
fn settings_that_can_not_be_right_are_named() {
    for (config, named) in [
        (json!({"authority": "http://login.example.com"}), "authority: "),
        (json!({"authority": "https://login.microsoftonline.com/common"}), "authority: "),
        (json!({"graph_url": "https://graph.microsoft.com/v1.0"}), "graph_url: "),
        (json!({"tenant_id": PERSONAL}), "tenant_id: "),
    ] {
        let error = Entra::begin(&call(config)).unwrap_err();
        assert!(matches!(&error, Error::Config(why) if why.starts_with(named)), "{error}");
    }
}

#[test]
fn only_people_of_the_tenant_come_in() {
    for other in [json!({"tid": "00000000-0000-0000-0000-000000000000"}), json!({"tid": null}), json!({"tid": 7})] {
        assert!(matches!(identify(json!({}), other), Err(Error::Rejected(why)) if why.contains("tid")));
    }
    assert_eq!(identify(json!({}), json!({"tid": TENANT.to_uppercase()})).unwrap().subject, "ada-oid");
    assert!(matches!(identify(json!({}), json!({"oid": ""})), Err(Error::Rejected(why)) if why.contains("oid")));
}

#[test]
fn an_address_is_verified_by_the_domains_owner_or_on_the_operators_word() {
    for (config, claims, email, verified) in [
        (json!({}), json!({"email": "a@x"}), Some("a@x"), false),
        // Entra never sends it, so whoever does is not to be believed.
        (json!({}), json!({"email": "a@x", "email_verified": true}), Some("a@x"), false),
        (json!({}), json!({"email": "a@x", "xms_edov": true}), Some("a@x"), true),
        (json!({}), json!({"email": "a@x", "xms_edov": "1"}), Some("a@x"), true),
        (json!({}), json!({"email": "a@x", "xms_edov": 1}), Some("a@x"), true),
        (json!({}), json!({"email": "a@x", "xms_edov": 0}), Some("a@x"), false),
        (json!({"trust_email": true}), json!({"email": "a@x"}), Some("a@x"), true),
        (json!({}), json!({"preferred_username": "a@x"}), Some("a@x"), false),
        (json!({"trust_email": true}), json!({"preferred_username": "+15550100"}), None, false),
    ] {
        let identity = identify(config, claims.clone()).unwrap();
        assert_eq!((identity.email.as_deref(), identity.email_verified), (email, verified), "{claims}");
    }
}

#[test]
fn groups_are_taken_from_the_token() {
    let far_side = testing::answer(|_| Ok(Response::new(500, "")));
    assert_eq!(identify(json!({}), json!({"groups": ["g1", "g2"]})).unwrap().groups, ["g1", "g2"]);
    assert!(identify(json!({"groups": false}), json!({"hasgroups": true})).unwrap().groups.is_empty());
    assert!(identify(json!({}), json!({})).unwrap().groups.is_empty());
    assert!(far_side.requests().is_empty());
}

const OVERAGE: &str = r#"{"_claim_names": {"groups": "src1"},
    "_claim_sources": {"src1": {"endpoint": "https://graph.windows.net/x/users/y/getMemberObjects"}}}"#;

#[test]
fn too_many_groups_are_fetched_page_by_page() {
    let far_side = testing::answer(|request| {
        let body = if request.url.path_and_query().contains("skiptoken") {
            json!({"value": [{"@odata.type": "#microsoft.graph.group", "id": "g3"}]})
        } else {
            json!({
                "value": [
                    {"@odata.type": "#microsoft.graph.group", "id": "g1"},
                    {"@odata.type": "#microsoft.graph.directoryRole", "id": "role"},
                    {"id": "g2"},
                ],
                "@odata.nextLink": "https://graph.microsoft.com/v1.0/me/transitiveMemberOf?$skiptoken=abc",
            })
        };
        Ok(Response::new(200, body.to_string()))
    });
    assert_eq!(identify(json!({}), serde_json::from_str(OVERAGE).unwrap()).unwrap().groups, ["g1", "g2", "g3"]);
    let requests = far_side.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].url.host(), "graph.microsoft.com");
    assert!(requests[0].url.path_and_query().starts_with("/v1.0/me/transitiveMemberOf?%24select=id&%24top=999"));
    assert!(requests.iter().all(|r| r.header("authorization") == Some("Bearer {{secret:access-token}}")));
    assert_eq!(identify(json!({}), json!({"hasgroups": "true"})).unwrap().groups.len(), 3);
}

#[test]
fn nobody_signs_in_without_their_groups() {
    let failing = |answer: fn() -> Result<Response, http::Error>| {
        let _far_side = testing::answer(move |_| answer());
        identify(json!({}), json!({"hasgroups": true})).unwrap_err()
    };
    assert!(matches!(failing(|| Ok(Response::new(403, ""))), Error::Config(_)));
    assert!(matches!(failing(|| Ok(Response::new(401, ""))), Error::Config(_)));
    let busy = failing(|| Ok(Response::new(429, "").with_header("retry-after", "7")));
    assert!(matches!(busy, Error::Unavailable { retry_after: Some(wait), .. } if wait == Duration::from_secs(7)));
    assert!(matches!(failing(|| Err(http::Error::Connect("cut".into()))), Error::Unavailable { .. }));
    assert!(matches!(failing(|| Ok(Response::new(200, r#"{"value":[{"id""#))), Error::Rejected(_)));
    assert!(matches!(
        failing(|| Ok(Response::new(302, "").with_header("location", "https://evil.example/"))),
        Error::Config(_)
    ));
    assert!(matches!(failing(|| Err(http::Error::TooLarge { limit: 1 })), Error::Rejected(_)));
}

#[test]
fn the_token_goes_to_graph_only_and_pages_come_to_an_end() {
    let elsewhere = testing::answer(|_| {
        Ok(Response::new(200, r#"{"value": [], "@odata.nextLink": "https://evil.example/v1.0/me"}"#))
    });
    assert!(matches!(identify(json!({}), json!({"hasgroups": true})), Err(Error::Rejected(_))));
    assert_eq!(elsewhere.requests().len(), 1);
    let in_circles = testing::answer(|_| {
        Ok(Response::new(200, r#"{"value": [], "@odata.nextLink": "https://graph.microsoft.com/v1.0/me"}"#))
    });
    assert!(matches!(identify(json!({}), json!({"hasgroups": true})), Err(Error::Rejected(_))));
    assert_eq!(in_circles.requests().len(), 10);
}
