//! Signing in by password, tokens that others can verify, refresh, the cookie, and signing out.

use std::net::Ipv4Addr;

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use reqwest::{Method, header::SET_COOKIE};
use serde_json::{Value, json};

use crate::harness::{Answer, Backend, Client, Headers, PASSWORD, Person, Setup, Tenant, World, eventually, id};

on_both!(
    a_password_signs_in_and_a_wrong_one_does_not,
    the_access_token_verifies_by_the_published_keys,
    a_refresh_token_is_exchanged_once,
    a_refresh_token_used_again_later_ends_the_session,
    the_cookie_signs_in_and_changes_only_from_our_own_pages,
    signing_out_ends_everything,
    a_person_who_is_disabled_or_gets_a_new_password_is_out,
    attempts_are_limited,
    nobody_locks_somebody_else_out,
    an_address_of_more_organizations_than_are_tried_needs_to_name_one,
);

async fn try_login(client: &Client, email: &str, password: &str) -> Answer {
    client.post("/api/v1/auth/login", json!({ "email": email, "password": password })).await
}

async fn tokens(world: &World, tenant: &Tenant) -> Value {
    try_login(&world.client(), &tenant.owner.email, PASSWORD).await.ok(200)
}

fn text(of: &Value, name: &str) -> String {
    of[name].as_str().unwrap_or_else(|| panic!("{name}: {of}")).to_owned()
}

async fn a_password_signs_in_and_a_wrong_one_does_not(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let client = world.client();
    let answer = try_login(&client, &tenant.owner.email.to_uppercase(), PASSWORD).await;
    let tokens = answer.ok(200);
    assert_eq!(tokens["token_type"], "Bearer");
    assert!(tokens["expires_in"].as_i64().is_some_and(|s| (60..=3600).contains(&s)), "{tokens}");
    let me = client.bearing(&text(&tokens, "access_token")).get("/api/v1/auth/me").await.ok(200);
    assert_eq!(me["user"]["email"], tenant.owner.email);
    assert_eq!(me["organization"]["id"], tenant.id);
    assert!(!me.to_string().contains("argon2"), "{me}");

    let wrong = try_login(&client, &tenant.owner.email, "wrong harbour turnip lantern").await;
    let nobody = try_login(&client, "nobody@acme.test", PASSWORD).await;
    let (wrong, nobody) = (wrong.problem(401, "invalid_credentials"), nobody.problem(401, "invalid_credentials"));
    assert_eq!(wrong["detail"], nobody["detail"], "which of the two was wrong is not told");
    try_login(&client, "not an address", PASSWORD).await.fault("/email");
    for header in ["Bearer", "Bearer x", "Basic b3duZXI6cHc=", "bearer a.b.c"] {
        let answer = client.request(Method::GET, "/api/v1/auth/me", None, &[("authorization", header)]).await;
        answer.problem(401, "unauthenticated");
    }
    let log = world.server.log();
    assert!(!log.contains(PASSWORD) && !log.contains("wrong harbour"), "a password is in the log");
}

async fn the_access_token_verifies_by_the_published_keys(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let keys = world.client().get("/.well-known/jwks.json").await;
    let keys: JwkSet = serde_json::from_str(&keys.text).expect("a JWK set");
    let token = tenant.owner.token.clone().expect("signed in");
    let header = decode_header(&token).expect("a JWT");
    assert_eq!(header.alg, Algorithm::RS256);
    let key = keys.find(header.kid.as_deref().expect("kid")).expect("the key is published");
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&["kaizen"]);
    validation.set_issuer(&[&world.server.url]);
    validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
    let claims =
        decode::<Value>(&token, &DecodingKey::from_jwk(key).expect("a key"), &validation).expect("it verifies").claims;
    assert_eq!(claims["sub"], tenant.owner.id);
    let published = serde_json::to_string(&keys).expect("JSON");
    assert!(!published.contains("\"d\":"), "the private part is not published: {published}");

    // Forgeries: another key, no signature, the public key as an HMAC secret, another body.
    let (head, rest) = token.split_once('.').expect("three parts");
    let (body, signature) = rest.split_once('.').expect("three parts");
    let flipped: String = signature.chars().rev().collect();
    let encode =
        |value: Value| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, value.to_string());
    let mut other = claims.clone();
    other["sub"] = json!(crate::harness::fresh_id());
    let none = encode(json!({ "alg": "none", "typ": "at+jwt", "kid": header.kid }));
    let hmac = encode(json!({ "alg": "HS256", "typ": "at+jwt", "kid": header.kid }));
    for forged in [
        format!("{head}.{body}.{flipped}"),
        format!("{head}.{body}."),
        format!("{none}.{body}."),
        format!("{hmac}.{body}.{signature}"),
        format!("{head}.{}.{signature}", encode(other)),
    ] {
        world.client().bearing(&forged).get("/api/v1/auth/me").await.problem(401, "unauthenticated");
    }
}

async fn refresh(client: &Client, token: &str) -> Answer {
    client.post("/api/v1/auth/refresh", json!({ "refresh_token": token })).await
}

async fn a_refresh_token_is_exchanged_once(backend: Backend) {
    let mut world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let client = world.client();
    let first = text(&tokens(&world, &tenant).await, "refresh_token");
    // Two tabs at once get the same successor: neither is thrown out.
    let (one, two) = tokio::join!(refresh(&client, &first), refresh(&client, &first));
    let (one, two) = (one.ok(200), two.ok(200));
    let second = text(&one, "refresh_token");
    assert_ne!(second, first, "it rotates");
    assert_eq!(second, text(&two, "refresh_token"));
    client.bearing(&text(&one, "access_token")).get("/api/v1/auth/me").await.ok(200);
    let third = text(&refresh(&client, &second).await.ok(200), "refresh_token");
    for bad in ["", "kzr_", "kzr_AAAA", &third[..third.len() - 2]] {
        refresh(&client, bad).await.problem(401, "invalid_credentials");
    }
    // It outlives the server.
    world.server.kill().await;
    world.again().await;
    refresh(&world.client(), &third).await.ok(200);
}

async fn a_refresh_token_used_again_later_ends_the_session(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let client = world.client();
    let begun = tokens(&world, &tenant).await;
    let stolen = text(&begun, "refresh_token");
    let next = refresh(&client, &stolen).await.ok(200);
    // An hour passes.
    let mut direct = world.setup.database.direct().await;
    direct.execute("UPDATE refresh_tokens SET used_at = '2024-01-01T00:00:00+00:00' WHERE used_at IS NOT NULL").await;
    refresh(&client, &stolen).await.problem(401, "invalid_credentials");
    refresh(&client, &text(&next, "refresh_token")).await.problem(401, "invalid_credentials");
    client.bearing(&text(&next, "access_token")).get("/api/v1/auth/me").await.problem(401, "unauthenticated");
    // Only that session: the owner's other one is untouched, and can read what happened.
    let events = tenant.owner.all("/api/v1/audit/events").await;
    assert!(events.iter().any(|e| e["action"] == "auth.refresh" && e["outcome"] == "denied"), "{events:?}");
}

async fn the_cookie_signs_in_and_changes_only_from_our_own_pages(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let answer = try_login(&world.client(), &tenant.owner.email, PASSWORD).await;
    let set = answer.headers.get(SET_COOKIE).expect("a cookie").to_str().expect("text").to_owned();
    assert!(set.starts_with("__Host-kaizen="), "{set}");
    for part in ["HttpOnly", "SameSite=Lax", "Path=/", "Secure"] {
        assert!(set.contains(part), "{part} is not in {set}");
    }
    assert!(!set.contains("Domain"), "{set}");
    let cookie = set.split(';').next().expect("name and value").to_owned();
    let client = world.client();
    let ask = |method: Method, origin: Vec<(&'static str, String)>| {
        let (client, cookie) = (client.clone(), cookie.clone());
        async move {
            let mut headers = vec![("cookie", cookie.as_str())];
            headers.extend(origin.iter().map(|(name, value)| (*name, value.as_str())));
            let (path, body) = match method {
                Method::GET => ("/api/v1/auth/me", None),
                _ => ("/api/v1/workspaces", Some(json!({ "name": crate::harness::fresh_id().to_string() }))),
            };
            client.request(method, path, body, &headers).await
        }
    };
    ask(Method::GET, vec![]).await.ok(200);
    let own = world.server.url.clone();
    ask(Method::POST, vec![("origin", own)]).await.ok(201);
    for evil in ["https://evil.example.com", "null", "http://127.0.0.1:1", ""] {
        ask(Method::POST, vec![("origin", evil.to_owned())]).await.problem(403, "cross_origin");
    }
    ask(Method::POST, vec![]).await.problem(403, "cross_origin");
    let all = tenant.owner.all("/api/v1/workspaces").await;
    let made = all.iter().filter(|w| w["name"].as_str().is_some_and(|name| name.len() == 36)).count();
    assert_eq!(made, 1, "{all:?}");
}

async fn signing_out_ends_everything(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let answer = try_login(&world.client(), &tenant.owner.email, PASSWORD).await;
    let cookie = answer.header("set-cookie").split(';').next().expect("a cookie").to_owned();
    let begun = answer.ok(200);
    let session = world.client().bearing(&text(&begun, "access_token"));
    let out = session.post("/api/v1/auth/logout", json!({})).await;
    assert!(out.header("set-cookie").contains("Max-Age=0"), "{out:?}");
    out.ok(204);
    session.get("/api/v1/auth/me").await.problem(401, "unauthenticated");
    refresh(&world.client(), &text(&begun, "refresh_token")).await.problem(401, "invalid_credentials");
    let by_cookie = world.client().request(Method::GET, "/api/v1/auth/me", None, &[("cookie", &cookie)]).await;
    by_cookie.problem(401, "unauthenticated");
    tenant.owner.get("/api/v1/auth/me").await.ok(200);
}

async fn a_person_who_is_disabled_or_gets_a_new_password_is_out(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let Person { id, email, client } = tenant.person("ada", "developer").await;
    let one = format!("/api/v1/users/{id}");
    tenant.owner.patch(&one, json!({ "password": "another marble window thimble" })).await.ok(200);
    client.get("/api/v1/auth/me").await.problem(401, "unauthenticated");
    try_login(&world.client(), &email, PASSWORD).await.problem(401, "invalid_credentials");
    let client = world.client().login(&email, "another marble window thimble").await;
    tenant.owner.patch(&one, json!({ "active": false })).await.ok(200);
    client.get("/api/v1/auth/me").await.problem(401, "unauthenticated");
    try_login(&world.client(), &email, "another marble window thimble").await.problem(401, "invalid_credentials");
    tenant.owner.patch(&one, json!({ "active": true })).await.ok(200);
    world.client().login(&email, "another marble window thimble").await.get("/api/v1/auth/me").await.ok(200);
    tenant.owner.patch(&one, json!({ "password": "short" })).await.fault("/password");
}

async fn attempts_are_limited(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let ada = tenant.person("ada", "viewer").await;
    let guess = || async { try_login(&world.client(), &ada.email, "a wrong password, again").await.status };
    let answers = futures::future::join_all((0..12).map(|_| guess())).await;
    assert!(answers.iter().all(|status| [401, 429, 503].contains(status)), "{answers:?}");
    let limited = crate::harness::eventually("guessing is refused", || async {
        let answer = try_login(&world.client(), &ada.email, "a wrong password, again").await;
        (answer.status == 429).then_some(answer)
    })
    .await;
    assert!(limited.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{limited:?}");
    limited.problem(429, "rate_limited");
    // Nobody else is locked out by it, and no open session is.
    try_login(&world.client(), &tenant.owner.email, PASSWORD).await.ok(200);
    ada.get("/api/v1/auth/me").await.ok(200);
}

/// The value of one of the cookies that an answer sets, as it is sent back.
fn cookie(answer: &Answer, name: &str) -> String {
    let set = answer.headers.get_all(SET_COOKIE).iter().map(|value| value.to_str().expect("text"));
    let one = set.filter_map(|value| value.split(';').next()).find(|pair| pair.split('=').next() == Some(name));
    one.unwrap_or_else(|| panic!("no cookie {name}: {answer:?}")).to_owned()
}

async fn nobody_locks_somebody_else_out(backend: Backend) {
    let setup = Setup::new(backend).await;
    // So few that the test need not guess for long.
    let setup = setup.with("KAIZEN_ACCOUNT_TOTAL_FAILURE_BURST", "6").with("KAIZEN_ACCOUNT_FAILURE_BURST", "2");
    let world = World::with(setup).await;
    let tenant = world.tenant("acme").await;
    let ada = tenant.person("ada", "viewer").await;
    let from = |last: u8| Client::coming_from(&world.server.url, Ipv4Addr::new(127, 0, 0, last));
    let known = try_login(&from(20), &ada.email, PASSWORD).await;
    let device = cookie(&known, "__Host-kaizen-device");
    known.ok(200);
    let refused = eventually("guessing from everywhere is refused", || async {
        for last in 30..40 {
            let answer = try_login(&from(last), &ada.email, "a wrong password, again").await;
            assert!([401, 429].contains(&answer.status), "{answer:?}");
        }
        let answer = try_login(&from(40), &ada.email, PASSWORD).await;
        (answer.status == 429).then_some(answer)
    })
    .await;
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{refused:?}");
    // Their owner comes from where they signed in before, or with the browser they did it with, or is signed in.
    try_login(&from(20), &ada.email, PASSWORD).await.ok(200);
    let login = json!({ "email": ada.email, "password": PASSWORD });
    let with_browser = |body: Value| {
        let (client, device) = (from(41), device.clone());
        async move { client.request(Method::POST, "/api/v1/auth/login", Some(body), &[("cookie", &device)]).await }
    };
    with_browser(login.clone()).await.ok(200);
    let change = json!({ "password": "another marble window thimble", "current_password": PASSWORD });
    let own = ada.client.at(&world.server.url);
    own.patch(&format!("/api/v1/users/{}", ada.id), change).await.ok(200);
    // The cookie lets nobody in, and does not guess for long either.
    with_browser(login.clone()).await.problem(401, "invalid_credentials");
    eventually("guessing with the browser is refused too", || async {
        (with_browser(login.clone()).await.status == 429).then_some(())
    })
    .await;
    try_login(&from(20), &ada.email, "another marble window thimble").await.ok(200);
    let log = world.server.log();
    assert!(!log.contains(device.split('=').nth(1).expect("a value")), "the cookie is not in the log");
}

#[tokio::test]
async fn what_anybody_may_ask_is_limited_for_each_client() {
    let setup =
        Setup::new(Backend::Sqlite).await.with("KAIZEN_LOOKUP_BURST", "3").with("KAIZEN_SSO_CALLBACK_BURST", "3");
    let setup = setup.with("KAIZEN_CANVAS_TICKET_BURST", "3").with("KAIZEN_PASSWORD_BURST", "3");
    let setup = setup.with("KAIZEN_REFRESH_BURST", "3").with("KAIZEN_REFRESHES_PER_MINUTE", "1");
    let setup = setup.with("KAIZEN_LOOKUPS_PER_MINUTE", "1").with("KAIZEN_SSO_CALLBACKS_PER_MINUTE", "1");
    let world =
        World::with(setup.with("KAIZEN_CANVAS_TICKETS_PER_MINUTE", "1").with("KAIZEN_PASSWORDS_PER_MINUTE", "1")).await;
    let tenant = world.tenant("acme").await;
    let from = |last: u8| Client::coming_from(&world.server.url, Ipv4Addr::new(127, 0, 0, last));
    let socket = format!("/ws/canvas/{}?ticket=kzt_1", crate::harness::fresh_id());
    let upgrade = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let asks: [(_, _, Headers<'_>, u16); 3] = [
        ("/api/v1/auth/connections?email=a@acme.test", "rate_limited", &[], 200),
        ("/auth/sso/callback?state=x&code=y", "", &[], 400),
        (&socket, "rate_limited", &upgrade, 101),
    ];
    for (path, code, headers, expected) in asks {
        for round in 0..3 {
            let answer = from(30).http.get(format!("{}{path}", world.server.url));
            let answer = headers.iter().fold(answer, |answer, (name, value)| answer.header(*name, *value));
            assert_eq!(answer.send().await.expect("an answer").status(), expected, "{path} {round}");
        }
        let refused = from(30).request(Method::GET, path, None, headers).await;
        assert_eq!(refused.status, 429, "{refused:?}");
        assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{refused:?}");
        if !code.is_empty() {
            refused.problem(429, code);
        }
    }
    // Each has a budget of its own, and so has each client; of passwords, before their body is read.
    for _ in 0..3 {
        try_login(&from(30), "nobody@acme.test", "x").await.problem(401, "invalid_credentials");
    }
    let not_even_json = [("content-type", "text/plain")];
    from(30).request(Method::POST, "/api/v1/auth/login", None, &not_even_json).await.problem(429, "rate_limited");
    try_login(&from(31), &tenant.owner.email, PASSWORD).await.ok(200);
    // Tokens are counted by session: with what is none, nobody is counted.
    for _ in 0..6 {
        refresh(&from(30), &format!("kzr_{}", "A".repeat(43))).await.problem(401, "invalid_credentials");
    }
    let mut token = text(&try_login(&from(32), &tenant.owner.email, PASSWORD).await.ok(200), "refresh_token");
    for _ in 0..3 {
        token = text(&refresh(&from(30), &token).await.ok(200), "refresh_token");
    }
    refresh(&from(30), &token).await.problem(429, "rate_limited");
    let other = text(&try_login(&from(33), &tenant.owner.email, PASSWORD).await.ok(200), "refresh_token");
    refresh(&from(30), &other).await.ok(200);
}

async fn an_address_of_more_organizations_than_are_tried_needs_to_name_one(backend: Backend) {
    const ANOTHER: &str = "amber window ladder pigeon";
    let world = World::with(Setup::new(backend).await.with("KAIZEN_SIGN_IN_ORGANIZATIONS", "2")).await;
    let operator = world.operator().await;
    let mut organizations = Vec::new();
    for (name, password) in [("one", PASSWORD), ("two", PASSWORD), ("three", ANOTHER)] {
        let owner = json!({ "email": "ada@many.test", "password": password });
        let made = operator.owner.create("/api/v1/organizations", json!({ "name": name, "owner": owner })).await;
        organizations.push(id(&made));
    }
    let client = world.client();
    let offered = try_login(&client, "ada@many.test", PASSWORD).await.problem(409, "conflict");
    let offered: Vec<_> = offered["organizations"].as_array().expect("a list").iter().map(id).collect();
    assert_eq!(offered, organizations[..2], "in the order in which they were made");
    // Of the newest one nothing is tried: the answer says what to send, to everybody alike.
    let refused = try_login(&client, "ada@many.test", ANOTHER).await.problem(401, "invalid_credentials");
    assert!(refused["detail"].as_str().expect("text").contains("`organization_id`"), "{refused}");
    let nobody = try_login(&client, "nobody@many.test", ANOTHER).await.problem(401, "invalid_credentials");
    assert_eq!(nobody["detail"], refused["detail"]);
    let login = json!({ "email": "ada@many.test", "password": ANOTHER, "organization_id": organizations[2] });
    let tokens = client.post("/api/v1/auth/login", login).await.ok(200);
    let me = client.bearing(&text(&tokens, "access_token")).get("/api/v1/auth/me").await.ok(200);
    assert_eq!(me["organization"]["id"], organizations[2]);
}
