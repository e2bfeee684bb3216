use std::time::Duration;

use kaizen_plugin::http::{self, Response};
use kaizen_plugin::testing;
use serde_json::{Value, json};

use super::*;

fn call(more: Value) -> Call<Config> {
    let mut config = json!({"client_id": "Iv1.x"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    testing::call::<Github>(&config.to_string())
}

fn github(request: &http::Sent) -> Response {
    let path = request.url.path_and_query();
    let body = match path.as_str() {
        "/user" => json!({"id": 583_231, "login": "octocat", "name": "The Octocat", "email": "shown@evil.example"}),
        "/user/emails?per_page=100" => json!([
            {"email": "old@example.com", "primary": false, "verified": true, "visibility": null},
            {"email": "octo@example.com", "primary": true, "verified": true, "visibility": "private"},
        ]),
        "/user/orgs?per_page=100" => {
            let next = r#"<https://api.github.com/user/orgs?per_page=100&page=2>; rel="next", <https://api.github.com/user/orgs?page=2>; rel="last""#;
            return Response::new(200, json!([{"login": "acme"}]).to_string()).with_header("Link", next);
        }
        "/user/orgs?per_page=100&page=2" => json!([{"login": "octo-org"}]),
        "/user/teams?per_page=100" => json!([{"slug": "justice", "organization": {"login": "acme", "id": 1}}]),
        _ => return Response::new(404, r#"{"message":"Not Found"}"#),
    };
    Response::new(200, body.to_string())
}

#[test]
fn each_github_has_its_own_addresses() {
    let endpoints = |config: Value| match Github::begin(&call(config)) {
        Ok(Protocol::OAuth2 { authorization_endpoint, token_endpoint, .. }) => (authorization_endpoint, token_endpoint),
        other => panic!("{other:?}"),
    };
    for (config, site, api) in [
        (json!({}), "https://github.com", "https://api.github.com/"),
        (json!({"url": "https://git.corp.example/"}), "https://git.corp.example", "https://git.corp.example/api/v3"),
        (
            json!({"url": "https://acme.ghe.com", "api_url": "https://api.acme.ghe.com"}),
            "https://acme.ghe.com",
            "https://api.acme.ghe.com/",
        ),
    ] {
        let (authorize, token) = endpoints(config.clone());
        assert_eq!(authorize, format!("{site}/login/oauth/authorize"));
        assert_eq!(token, format!("{site}/login/oauth/access_token"));
        assert_eq!(call(config).config.api().unwrap().to_string(), api);
    }
    for (config, named) in [
        (json!({"url": "https://acme.ghe.com"}), "api_url: "),
        (json!({"url": "http://git.corp.example"}), "url: "),
        (json!({"url": "https://github.com/acme"}), "url: "),
        (json!({"api_url": "http://api.corp.example"}), "api_url: "),
    ] {
        let error = Github::begin(&call(config)).unwrap_err();
        assert!(matches!(&error, Error::Config(why) if why.starts_with(named)), "{error}");
    }
}

#[test]
fn somebody_is_who_the_token_says_with_all_their_organizations() {
    let far_side = testing::answer(|request| Ok(github(request)));
    let identity = Github::identify(&call(json!({"teams": true})), &Grant::default()).unwrap();
    assert_eq!(identity.subject, "583231");
    assert_eq!((identity.email.as_deref(), identity.email_verified), (Some("octo@example.com"), true));
    assert_eq!(identity.name.as_deref(), Some("The Octocat"));
    assert_eq!(identity.groups, ["acme", "octo-org", "acme/justice"]);
    assert_eq!(identity.attributes["login"], "octocat");
    for request in far_side.requests() {
        assert_eq!(request.url.host(), "api.github.com");
        assert_eq!(request.header("authorization"), Some("Bearer {{secret:access-token}}"));
        assert!(request.header("user-agent").is_some());
    }
}

#[test]
fn only_a_verified_primary_address_counts() {
    for emails in [
        json!([]),
        json!([{"email": "a@x", "primary": true, "verified": false}]),
        json!([{"email": "a@x", "primary": false, "verified": true}]),
    ] {
        let text = emails.to_string();
        let _far_side = testing::answer(move |request| {
            let path = request.url.path_and_query();
            Ok(if path.starts_with("/user/emails") { Response::new(200, text.clone()) } else { github(request) })
        });
        let identity = Github::identify(&call(json!({})), &Grant::default()).unwrap();
        assert_eq!((identity.email, identity.email_verified), (None, false), "{emails}");
    }
}

#[test]
fn strangers_to_the_organizations_named_stay_out() {
    let _far_side = testing::answer(|request| Ok(github(request)));
    let identify = |names: Value| Github::identify(&call(json!({"organizations": names})), &Grant::default());
    assert!(identify(json!(["else", "OCTO-org"])).is_ok());
    assert!(matches!(identify(json!(["else"])), Err(Error::Rejected(why)) if why.contains("else")));
}

#[test]
fn a_token_that_covers_less_than_was_asked_for_signs_nobody_in() {
    for (scopes, missing) in [
        ("read:org, read:user, user:email", None),
        ("admin:org,user", None),
        // A GitHub App's.
        ("", None),
        ("read:user, user:email", Some("read:org")),
        ("read:org, read:user", Some("user:email")),
        ("user", Some("read:org")),
    ] {
        let far_side = testing::answer(move |request| Ok(github(request).with_header("X-OAuth-Scopes", scopes)));
        match (Github::identify(&call(json!({})), &Grant::default()), missing) {
            (Ok(_), None) => {}
            (Err(Error::Rejected(why)), Some(missing)) if why.contains(missing) => {
                assert_eq!(far_side.requests().len(), 1, "nothing more is asked");
            }
            (other, _) => panic!("{scopes}: {other:?}"),
        }
    }
}

#[test]
fn errors_say_who_has_to_act() {
    let failing = |answer: fn() -> Result<Response, http::Error>| {
        let _far_side = testing::answer(move |_| answer());
        Github::identify(&call(json!({})), &Grant::default()).unwrap_err()
    };
    assert!(matches!(failing(|| Ok(Response::new(401, r#"{"message":"Bad credentials"}"#))), Error::Config(_)));
    assert!(matches!(failing(|| Ok(Response::new(403, r#"{"message":"Resource not accessible"}"#))), Error::Config(_)));
    assert!(matches!(failing(|| Ok(Response::new(404, ""))), Error::Config(why) if why.contains("api_url")));
    assert!(matches!(failing(|| Ok(Response::new(302, "").with_header("location", "https://e/"))), Error::Config(_)));
    for status in [403, 429] {
        let _far_side = testing::answer(move |_| Ok(Response::new(status, "").with_header("retry-after", "30")));
        let error = Github::identify(&call(json!({})), &Grant::default()).unwrap_err();
        let wait = Duration::from_secs(30);
        assert!(matches!(error, Error::Unavailable { retry_after: Some(said), .. } if said == wait), "{error}");
    }
    let until = || {
        let date = Response::new(403, "").with_header("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        Ok(date.with_header("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT"))
    };
    let wait = Duration::from_secs(60);
    assert!(matches!(failing(until), Error::Unavailable { retry_after: Some(said), .. } if said == wait));
    let spent =
        || Ok(Response::new(403, "").with_header("x-ratelimit-remaining", "0").with_header("x-ratelimit-reset", "1"));
    assert!(matches!(failing(spent), Error::Unavailable { retry_after: Some(Duration::ZERO), .. }));
    assert!(matches!(failing(|| Ok(Response::new(502, ""))), Error::Unavailable { .. }));
    assert!(matches!(failing(|| Err(http::Error::Connect("cut".into()))), Error::Unavailable { .. }));
    assert!(matches!(failing(|| Ok(Response::new(200, "<html>"))), Error::Rejected(_)));
    assert!(matches!(failing(|| Ok(Response::new(200, r#"{"login":"x"}"#))), Error::Rejected(_)));
    assert!(matches!(failing(|| Err(http::Error::TooLarge { limit: 1 })), Error::Rejected(_)));
}

#[test]
fn the_token_follows_no_page_to_another_host_and_none_in_circles() {
    for (next, requests) in [("https://evil.example/user/orgs", 2), ("https://api.github.com/user/orgs?page=1", 21)] {
        let link = format!("<{next}>; rel=\"next\"");
        let far_side = testing::answer(move |request| {
            let orgs = request.url.path_and_query().starts_with("/user/orgs");
            Ok(if orgs { Response::new(200, "[]").with_header("link", &link) } else { github(request) })
        });
        assert!(matches!(Github::identify(&call(json!({})), &Grant::default()), Err(Error::Rejected(_))));
        assert_eq!(far_side.requests().len(), requests);
    }
}
