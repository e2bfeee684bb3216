//! Sign-ins at a provider that fail: each has a code, in the metric, in the log and in the audit trail, and a page that says
//! who can do something about it. And what a connection requires of those who come.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Backend, Browser, CLIENT_SECRET, Issuer, PASSWORD, Setup, Trouble, World, eventually},
    identities::Company,
};

on_both!(
    a_failed_sign_in_is_told_with_its_code,
    a_trail_is_not_filled_by_failing,
    a_newcomer_counts_as_a_user,
    a_subject_that_is_too_long_signs_nobody_in,
    a_provider_that_takes_too_long_ends_in_a_page,
    a_connection_that_changes_meanwhile_signs_nobody_in,
    the_code_of_one_provider_is_not_sent_to_another_one,
    only_who_has_the_required_claims_comes_in,
    a_token_that_is_dated_back_is_taken,
    a_new_sign_in_replaces_the_browsers_old_session,
);

/// Whether sign-ins with these labels were counted.
pub async fn metric(world: &World, labels: &str) -> bool {
    let text = world.client().at(&world.server.ops).get("/metrics").await.text;
    text.lines().any(|line| line.starts_with("kaizen_sign_ins_total{") && labels.split(' ').all(|l| line.contains(l)))
}

async fn a_failed_sign_in_is_told_with_its_code(backend: Backend) {
    let company = Company::start(backend, json!({ "default_role": "viewer" })).await;
    company.issuer.vouches("1", "ada@acme.test");
    let said = |error: &str, description: &str| {
        Trouble::Callback(vec![("error", error.to_owned()), ("error_description", description.to_owned())])
    };
    let token = |status, error: &str, description: &str| {
        Trouble::Token(status, json!({ "error": error, "error_description": description }))
    };
    let cases = [
        (
            said("access_denied", "<b>Ada</b> is not\r\n assigned\u{202e}"),
            403,
            "refused_by_provider",
            "not assigned",
            "access_denied",
        ),
        (said("temporarily_unavailable", "back at 9"), 503, "provider_unavailable", "back at 9", "in a while"),
        (said("server_error", ""), 503, "provider_unavailable", "server_error", "in a while"),
        (
            token(401, "invalid_client", "AADSTS7000215"),
            502,
            "provider_settings",
            "AADSTS7000215",
            "Tell your administrator",
        ),
        (token(400, "invalid_grant", "expired"), 502, "provider_answer", "invalid_grant: expired", "Try again"),
        (token(503, "temporarily_unavailable", ""), 503, "provider_unavailable", "temporarily", "in a while"),
    ];
    for (trouble, status, code, recorded, shown) in cases {
        company.issuer.trouble(Some(trouble.clone()));
        let (_, page) = company.sign_in().await;
        assert_eq!(page.status, status, "{trouble:?}: {page:?}");
        assert!(
            page.text.contains(shown) && !page.text.contains("<b>") && !page.text.contains("assigned"),
            "{}",
            page.text
        );
        let event = company.event("auth.login", "failure").await;
        let details = &event["details"];
        assert_eq!(details["code"], code, "{event}");
        assert!(details.to_string().contains(recorded) && !details.to_string().contains('\u{202e}'), "{event}");
        assert_eq!(details["client"], "127.0.0.1", "{event}");
        assert!(
            details["user_agent"].is_string() && page.text.contains(details["request_id"].as_str().expect("an id"))
        );
        assert!(metric(&company.world, &format!("method=\"sso\" outcome=\"{code}\"")).await, "{code}");
        let log = company.world.server.log();
        assert!(log.lines().any(|line| line.contains("sign-in elsewhere failed") && line.contains(code)), "{code}");
    }
    company.issuer.trouble(None);
    // What the library only says in its cause.
    company.issuer.says(json!({ "sub": "1", "aud": "somebody-else" }));
    let (_, page) = company.sign_in().await;
    assert_eq!(page.status, 403);
    assert_eq!(company.event("auth.login", "failure").await["details"]["code"], "provider_not_trusted");
    // A good one tells from where, too.
    company.issuer.vouches("1", "ada@acme.test");
    let (browser, _) = company.sign_in().await;
    company.me(&browser).await.ok(200);
    let event = company.event("auth.login", "success").await;
    assert_eq!(
        (&event["details"]["client"], &event["details"]["method"]),
        (&json!("127.0.0.1"), &json!("sso")),
        "{event}"
    );
    assert!(metric(&company.world, "method=\"sso\" outcome=\"success\"").await);
    // By password as well.
    let owner = &company.tenant.owner.email;
    let wrong = json!({ "email": owner, "password": "a wrong password" });
    company.world.client().post("/api/v1/auth/login", wrong).await.problem(401, "invalid_credentials");
    let event = company.event("auth.login", "failure").await;
    assert_eq!(
        (&event["details"]["code"], &event["details"]["client"]),
        (&json!("wrong_password"), &json!("127.0.0.1"))
    );
    assert!(metric(&company.world, "method=\"password\" outcome=\"wrong_credentials\"").await);
    assert!(!company.world.server.log().contains(owner.as_str()), "what was typed as an address is not logged");
}

/// Anybody can begin a sign-in and break it off.
async fn a_trail_is_not_filled_by_failing(backend: Backend) {
    let setup = Setup::new(backend).await.with("KAIZEN_SIGN_IN_FAILURES_RECORDED", "3");
    let company = Company::at(World::with(setup).await, json!({})).await;
    company.issuer.trouble(Some(Trouble::Callback(vec![("error", "access_denied".into())])));
    for _ in 0..6 {
        assert_eq!(company.sign_in().await.1.status, 403);
    }
    let events = company.tenant.owner.all("/api/v1/audit/events").await;
    let failed: Vec<&Value> = events.iter().filter(|e| e["details"]["code"] == "refused_by_provider").collect();
    assert_eq!(failed.len(), 3, "{events:?}");
    let noted =
        failed.iter().filter(|e| e["details"]["note"].as_str().is_some_and(|note| note.contains("not recorded")));
    assert_eq!(noted.count(), 1, "{failed:?}");
}

async fn a_newcomer_counts_as_a_user(backend: Backend) {
    let setup = Setup::new(backend).await.with("KAIZEN_USERS_PER_ORGANIZATION", "2");
    let setup = setup.with("KAIZEN_MEMBERSHIPS_PER_USER", "1");
    let roles = json!({ "default_role": "viewer", "group_roles": { "a": "developer", "b": "auditor" } });
    let company = Company::at(World::with(setup).await, roles).await;
    company.issuer.says(json!({ "sub": "0", "email": "eve@acme.test", "email_verified": true, "groups": ["a", "b"] }));
    assert_eq!(company.sign_in().await.1.status, 403, "two roles");
    assert_eq!(company.event("auth.login", "failure").await["details"]["code"], "organization_full");
    assert_eq!(company.tenant.owner.all("/api/v1/users").await.len(), 1, "nobody was made");
    company.issuer.vouches("1", "ada@acme.test");
    assert_eq!(company.sign_in().await.1.url.path(), "/canvas");
    company.issuer.vouches("2", "bob@acme.test");
    assert_eq!(company.sign_in().await.1.status, 403);
    assert_eq!(company.event("auth.login", "failure").await["details"]["code"], "organization_full");
    assert_eq!(company.tenant.owner.all("/api/v1/users").await.len(), 2);
    company.issuer.vouches("1", "ada@acme.test");
    assert_eq!(company.sign_in().await.1.url.path(), "/canvas", "who is there already comes in");
}

async fn a_subject_that_is_too_long_signs_nobody_in(backend: Backend) {
    let company = Company::start(backend, json!({ "default_role": "viewer" })).await;
    // As long as a plugin may answer, which with a long issuer would be longer than a row of PostgreSQL's index.
    let long: String =
        (0..1900_u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)).collect();
    company.issuer.vouches(&long, "ada@acme.test");
    assert_eq!(company.sign_in().await.1.status, 403);
    assert_eq!(company.event("auth.login", "failure").await["details"]["code"], "subject_not_accepted");
    company.issuer.vouches(&"s".repeat(255), "ada@acme.test");
    assert_eq!(company.sign_in().await.1.url.path(), "/canvas");
}

async fn a_provider_that_takes_too_long_ends_in_a_page(backend: Backend) {
    let setup = Setup::new(backend).await.with("KAIZEN_SIGN_IN_SECONDS", "1");
    let company = Company::at(World::with(setup).await, json!({ "default_role": "viewer" })).await;
    company.issuer.trouble(Some(Trouble::Hold));
    let (browser, page) = company.sign_in().await;
    assert_eq!(page.status, 504);
    assert!(page.text.starts_with("<!doctype html>") && page.text.contains("took too long"), "{}", page.text);
    company.me(&browser).await.problem(401, "unauthenticated");
    assert_eq!(company.event("auth.login", "failure").await["details"]["code"], "timeout");
    assert_eq!(company.tenant.owner.all("/api/v1/users").await.len(), 1, "nobody was made");
}

/// While the provider is asked who it is.
async fn a_connection_that_changes_meanwhile_signs_nobody_in(backend: Backend) {
    let company = Company::start(backend, json!({ "default_role": "viewer" })).await;
    let owner = &company.tenant.owner;
    company.issuer.vouches("1", "ada@acme.test");
    for (change, status, code) in [
        (Some(json!({ "config": { "parameters": { "prompt": "login" } } })), 409, "connection_changed"),
        (Some(json!({ "active": false })), 404, "no_connection"),
        (None, 404, "no_connection"),
    ] {
        if change.is_none() {
            owner.patch(&company.one(), json!({ "active": true })).await.ok(200);
        }
        company.issuer.trouble(Some(Trouble::Hold));
        let act = async {
            match &change {
                Some(change) => drop(owner.patch(&company.one(), change.clone()).await.ok(200)),
                None => drop(owner.delete(&company.one()).await.ok(204)),
            }
        };
        let ((), (browser, page)) = tokio::join!(company.issuer.meanwhile(act), company.sign_in());
        assert_eq!((page.status, page.url.path()), (status, "/auth/sso/callback"), "{change:?}: {page:?}");
        company.me(&browser).await.problem(401, "unauthenticated");
        assert_eq!(company.event("auth.login", "failure").await["details"]["code"], code);
    }
    assert_eq!(owner.all("/api/v1/users").await.len(), 1, "nobody was made");
}

/// While the person is at the provider.
async fn the_code_of_one_provider_is_not_sent_to_another_one(backend: Backend) {
    let company = Company::start(backend, json!({ "default_role": "viewer" })).await;
    let other = Issuer::start().await;
    for issuer in [&company.issuer, &other] {
        issuer.vouches("1", "ada@acme.test");
    }
    let browser = Browser::new();
    let back = company.follow(&browser, |url| url.path() == "/auth/sso/callback").await;
    let change = json!({ "config": { "issuer": other.url }, "secrets": { "client-secret": CLIENT_SECRET } });
    company.tenant.owner.patch(&company.one(), change).await.ok(200);
    let page = browser.visit(Method::GET, back.url, &[], |_| false).await;
    assert_eq!((page.status, page.url.path()), (409, "/auth/sso/callback"), "{page:?}");
    company.me(&browser).await.problem(401, "unauthenticated");
    assert_eq!(company.event("auth.login", "failure").await["details"]["code"], "connection_changed");
    assert_eq!((company.issuer.token_requests(), other.token_requests()), (0, 0), "nobody is sent the code");
    assert_eq!(company.sign_in().await.1.url.path(), "/canvas", "who starts again comes in");
    assert_eq!(other.token_requests(), 1);
}

async fn only_who_has_the_required_claims_comes_in(backend: Backend) {
    let config =
        json!({ "default_role": "viewer", "required_claims": { "hd": "acme.test", "department": ["R&D", "IT"] } });
    let company = Company::start(backend, config).await;
    let owner = &company.tenant.owner;
    let says = |claims: Value| {
        let mut all = json!({ "sub": "1", "email": "ada@acme.test", "email_verified": true });
        all.as_object_mut().expect("claims").extend(claims.as_object().expect("claims").clone());
        company.issuer.says(all);
    };
    for (claims, name) in [
        (json!({}), "hd"),
        (json!({ "hd": "other.test", "department": "IT" }), "hd"),
        (json!({ "hd": "acme.test" }), "department"),
        (json!({ "hd": "acme.test", "department": ["Sales"] }), "department"),
    ] {
        says(claims.clone());
        let (browser, page) = company.sign_in().await;
        assert_eq!(page.status, 403, "{claims}: {page:?}");
        company.me(&browser).await.problem(401, "unauthenticated");
        let event = company.event("auth.login", "failure").await;
        assert_eq!((&event["details"]["code"], &event["details"]["claim"]), (&json!("required_claim"), &json!(name)));
        assert!(!event.to_string().contains("other.test") && !event.to_string().contains("Sales"), "{event}");
    }
    assert_eq!(owner.all("/api/v1/users").await.len(), 1, "nobody was made");
    says(json!({ "hd": "acme.test", "department": ["Sales", "IT"] }));
    let (browser, page) = company.sign_in().await;
    assert_eq!(page.url.path(), "/canvas", "{page:?}");
    company.me(&browser).await.ok(200);
    // Somebody who was in before is not any more, once they do not belong here.
    says(json!({ "hd": "other.test", "department": "IT" }));
    assert_eq!(company.sign_in().await.1.status, 403);
    // What was only asked for is required, too.
    let change = json!({ "config": { "required_claims": null, "parameters": { "hd": "acme.test" } } });
    owner.patch(&company.one(), change).await.ok(200);
    assert_eq!(company.sign_in().await.1.status, 403);
    says(json!({ "hd": "acme.test" }));
    assert_eq!(company.sign_in().await.1.url.path(), "/canvas");
    // Where anybody can have an account, having one is not enough; and nonsense is not stored.
    let google = |config: Value| {
        let mut body = json!({
            "name": "google", "plugin": "oidc", "secrets": { "client-secret": "s" },
            "config": { "issuer": "https://accounts.google.com", "client_id": "k", "default_role": "viewer" },
        });
        body["config"].as_object_mut().expect("config").extend(config.as_object().expect("config").clone());
        body
    };
    let at = "/api/v1/identity-connections";
    let fault = owner.post(at, google(json!({}))).await.fault("/config");
    assert!(fault.contains("required_claims"), "{fault}");
    owner.create(at, google(json!({ "required_claims": { "hd": "acme.test" } }))).await;
    owner.post(at, google(json!({ "required_claims": { "hd": { "a": 1 } } }))).await.problem(422, "invalid");
}

/// As Microsoft Entra ID dates its tokens: five minutes back.
async fn a_token_that_is_dated_back_is_taken(backend: Backend) {
    let company = Company::start(backend, json!({ "default_role": "viewer" })).await;
    company.issuer.says_dated(json!({ "sub": "1", "email": "ada@acme.test", "email_verified": true }), -300);
    assert_eq!(company.sign_in().await.1.url.path(), "/canvas");
    company.issuer.says_dated(json!({ "sub": "1" }), 3600);
    assert_eq!(company.sign_in().await.1.status, 403);
}

async fn a_new_sign_in_replaces_the_browsers_old_session(backend: Backend) {
    let company = Company::start(backend, json!({ "default_role": "viewer" })).await;
    company.issuer.vouches("1", "ada@acme.test");
    let (browser, _) = company.sign_in().await;
    company.me(&browser).await.ok(200);
    company.issuer.vouches("2", "bob@acme.test");
    company.follow(&browser, |url| url.path() == "/canvas").await;
    let me = company.me(&browser).await.ok(200);
    assert_eq!(me["user"]["email"], "bob@acme.test");
    let ended = company.event("auth.logout", "success").await;
    assert_eq!(ended["details"]["reason"], "the browser signed in anew", "{ended}");
    // By password in the same browser.
    let url = format!("{}/api/v1/auth/login", company.world.server.url);
    let login = json!({ "email": company.tenant.owner.email, "password": PASSWORD });
    let answer = browser.http().request(Method::POST, url).json(&login).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    eventually("Bob's session has ended", || async {
        let events = company.tenant.owner.all("/api/v1/audit/events").await;
        let bob = format!("user/{}", me["user"]["id"].as_str().expect("an id"));
        events.iter().any(|e| e["action"] == "auth.logout" && e["actor"] == bob.as_str()).then_some(())
    })
    .await;
}
