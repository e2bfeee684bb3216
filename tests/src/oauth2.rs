//! Signing in by plain OAuth 2, with the `github` plugin at a provider that speaks as GitHub Enterprise does.

use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::harness::{
    Answer, Backend, Browser, CLIENT_ID, CLIENT_SECRET, Exchange, OAuth2, Page, Setup, Tenant, World, free_port, id,
};

on_both!(
    someone_signs_in_by_oauth2,
    a_callback_that_is_not_this_browsers_is_refused,
    a_provider_that_does_not_answer_as_it_should_signs_nobody_in,
    another_providers_callback_never_reaches_the_token_endpoint,
);

/// All that the rooms of a sign-in and the libraries under them have to tell.
const LOG: &str = "debug,kaizen=trace,hyper=trace,hyper_util=trace,tower_http=trace,axum=trace,cranelift_codegen=info,\
                   wasmtime_internal_cranelift=info,regalloc2=info";

struct Company {
    world: World,
    tenant: Tenant,
    provider: OAuth2,
    connection: String,
}

fn ada() -> Value {
    json!({
        "id": 4711, "login": "ada", "name": "Ada", "email": null,
        "emails": [
            { "email": "private@home.test", "primary": false, "verified": true, "visibility": null },
            { "email": "ada@acme.test", "primary": true, "verified": true, "visibility": "private" },
        ],
        "orgs": [{ "login": "acme", "id": 1 }],
    })
}

impl Company {
    /// The log tells everything it can, so that a secret in it would be found.
    async fn start(backend: Backend) -> Self {
        Self::with(Setup::new(backend).await.with("KAIZEN_LOG", LOG), json!({})).await
    }

    /// With these settings, and this in the connection's configuration too.
    async fn with(setup: Setup, more: Value) -> Self {
        let world = World::with(setup).await;
        let provider = OAuth2::start(ada()).await;
        let tenant = world.tenant("acme").await;
        let mut body = json!({
            "name": "github",
            "plugin": "github",
            "config": { "url": provider.url, "client_id": CLIENT_ID, "group_roles": { "acme": "developer" } },
            "secrets": { "client-secret": CLIENT_SECRET },
        });
        body["config"].as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let connection = id(&tenant.owner.create("/api/v1/identity-connections", body).await);
        Self { world, tenant, provider, connection }
    }

    /// Begins a sign-in; ends at the server's own page, or at the callback, which is not followed then.
    async fn begin(&self, browser: &Browser, stop_at: &str) -> Page {
        let start = format!("{}/auth/sso/{}/login?return_to=/canvas", self.world.server.url, self.connection);
        let home = Url::parse(&self.world.server.url).expect("an address").origin();
        let stop = |url: &Url| url.origin() == home && url.path() == stop_at;
        browser.visit(Method::GET, Url::parse(&start).expect("an address"), &[], stop).await
    }

    async fn me(&self, browser: &Browser) -> Answer {
        let url = format!("{}/api/v1/auth/me", self.world.server.url);
        let response = browser.http().get(&url).send().await.expect("an answer");
        Answer::read(format!("GET {url}"), response).await
    }

    /// Nothing that the server and the provider share is in the log.
    fn assert_log_is_clean(&self) {
        let log = self.world.server.log();
        assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log tells everything");
        let secrets = self.provider.secrets();
        assert!(!secrets.is_empty());
        for secret in secrets.iter().map(String::as_str).chain([CLIENT_SECRET]) {
            let line = log.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "a secret is in the log: {line:?}");
        }
    }
}

async fn someone_signs_in_by_oauth2(backend: Backend) {
    let company = Company::start(backend).await;
    let mut user = None;
    for exchange in [Exchange::Strict, Exchange::Form] {
        company.provider.exchange(exchange);
        let browser = Browser::new();
        let page = company.begin(&browser, "/canvas").await;
        assert_eq!(page.url.path(), "/canvas", "{exchange:?}: {page:?}");
        let me = company.me(&browser).await.ok(200);
        assert_eq!(me["user"]["email"], "ada@acme.test", "the verified primary address: {me}");
        assert_eq!(me["roles"][0]["role"], "developer", "{me}");
        // The second time it is the same person.
        assert_eq!(user.get_or_insert(me["user"]["id"].clone()), &me["user"]["id"]);
    }
    // The address may change at the provider; the person is known by what never does.
    let mut renamed = ada();
    renamed["login"] = "ada-lovelace".into();
    renamed["emails"] = json!([{ "email": "lovelace@acme.test", "primary": true, "verified": true }]);
    company.provider.person(renamed);
    let browser = Browser::new();
    company.begin(&browser, "/canvas").await;
    assert_eq!(Some(company.me(&browser).await.ok(200)["user"]["id"].clone()), user);
    // Somebody else with an address that nobody vouches for does not become her.
    let mut mallory = ada();
    mallory["id"] = 666.into();
    mallory["emails"] = json!([{ "email": "ada@acme.test", "primary": true, "verified": false }]);
    company.provider.person(mallory);
    let browser = Browser::new();
    let page = company.begin(&browser, "/canvas").await;
    assert_eq!(page.status, 403, "{page:?}");
    assert_eq!(company.me(&browser).await.status, 401);

    let events = company.tenant.owner.all("/api/v1/audit/events").await;
    let logins = events.iter().filter(|e| e["action"] == "auth.login" && e["outcome"] == "success");
    assert_eq!(logins.count(), 3 + 1, "Ada's three, and the owner's own: {events:?}");
    assert!(!Value::from(events).to_string().contains(CLIENT_SECRET));
    company.assert_log_is_clean();
}

async fn a_callback_that_is_not_this_browsers_is_refused(backend: Backend) {
    let company = Company::start(backend).await;
    let (attacker, victim) = (Browser::new(), Browser::new());
    let callback = company.begin(&attacker, "/auth/sso/callback").await.url;
    assert!(callback.query().is_some_and(|query| query.contains("code=code_")), "{callback}");
    // Another browser, one that began a sign-in of its own, and a state that was altered.
    let visit = async |browser: &Browser, url: &Url| {
        browser.visit(Method::GET, url.clone(), &[], |url| url.path() == "/canvas").await
    };
    assert_eq!(visit(&victim, &callback).await.status, 400);
    let of_victim = company.begin(&victim, "/auth/sso/callback").await.url;
    assert_eq!(visit(&victim, &callback).await.status, 400);
    let query = |url: &Url, name: &str| url.query_pairs().find(|(n, _)| n == name).expect("there").1.into_owned();
    let mut altered = of_victim.clone();
    altered.query_pairs_mut().clear().append_pair("code", &query(&of_victim, "code"));
    assert_eq!(visit(&victim, &altered).await.status, 400, "without a state");
    altered.query_pairs_mut().append_pair("state", &query(&callback, "state"));
    assert_eq!(visit(&victim, &altered).await.status, 400, "with the attacker's state");
    assert!(company.provider.asked().is_empty(), "no code was exchanged");

    // A code of the attacker's slipped under the victim's own state: the provider finds that the challenge was another one.
    let mut injected = of_victim.clone();
    injected
        .query_pairs_mut()
        .clear()
        .append_pair("code", &query(&callback, "code"))
        .append_pair("state", &query(&of_victim, "state"));
    assert_eq!(visit(&victim, &injected).await.status, 502);
    assert_eq!(company.provider.asked().len(), 1);
    assert_eq!(company.me(&victim).await.status, 401);
    // It is used up now, for everybody.
    assert_ne!(visit(&attacker, &callback).await.url.path(), "/canvas");
    assert_eq!(company.me(&attacker).await.status, 401);

    // What worked once does not work again.
    let browser = Browser::new();
    let callback = company.begin(&browser, "/auth/sso/callback").await.url;
    assert_eq!(visit(&browser, &callback).await.url.path(), "/canvas");
    let asked = company.provider.asked().len();
    assert_eq!(visit(&browser, &callback).await.status, 400);
    assert_eq!(company.provider.asked().len(), asked);

    // Where the provider says no, its code is shown.
    let mut refused = company.begin(&browser, "/auth/sso/callback").await.url;
    let state = query(&refused, "state");
    refused.query_pairs_mut().clear().append_pair("error", "access_denied").append_pair("state", &state);
    let page = visit(&browser, &refused).await;
    assert!(page.status == 403 && page.text.contains("access_denied"), "{page:?}");
    company.assert_log_is_clean();
}

async fn a_provider_that_does_not_answer_as_it_should_signs_nobody_in(backend: Backend) {
    let company = Company::start(backend).await;
    for (exchange, logged) in [
        // It repeats our secret in its words, which are left out then.
        (Exchange::Unknown, "sent back what is secret"),
        (Exchange::Error200, "bad_verification_code"),
        (Exchange::Broken, "500"),
        (Exchange::Endless, "larger than allowed"),
        (Exchange::Silent, "took longer than"),
    ] {
        company.provider.exchange(exchange);
        let browser = Browser::new();
        let page = company.begin(&browser, "/canvas").await;
        assert_eq!((page.status, page.url.path()), (502, "/auth/sso/callback"), "{exchange:?}: {page:?}");
        assert!(page.text.contains("does not answer as it should"), "{exchange:?}: {}", page.text);
        assert_eq!(company.me(&browser).await.status, 401);
        let log = company.world.server.log();
        let why = log.lines().rfind(|line| line.contains("sign-in elsewhere failed")).unwrap_or_default().to_owned();
        assert!(why.contains(logged), "{exchange:?}: {why}");
    }
    // Nothing of it lasts.
    company.provider.exchange(Exchange::Strict);
    let browser = Browser::new();
    assert_eq!(company.begin(&browser, "/canvas").await.url.path(), "/canvas");
    company.me(&browser).await.ok(200);
    company.assert_log_is_clean();
}

/// A mix-up (RFC 9700, section 4.4): the browser was sent to one provider and comes back from another, whose code would be
/// handed to the first. RFC 9207's `iss` tells.
async fn another_providers_callback_never_reaches_the_token_endpoint(backend: Backend) {
    let company = Company::start(backend).await;
    company.provider.iss(Some("https://honest.example.com".into()));
    let browser = Browser::new();
    let page = company.begin(&browser, "/canvas").await;
    assert_eq!((page.status, page.url.path()), (403, "/auth/sso/callback"), "{page:?}");
    assert!(page.text.contains("could not be verified"), "{}", page.text);
    assert!(company.provider.asked().is_empty());
    company.provider.iss(Some(format!("{}/login/oauth", company.provider.url)));
    assert_eq!(company.begin(&browser, "/canvas").await.url.path(), "/canvas");
}

/// The address of the authorization request is in the browser's hands: with fewer scopes GitHub shows fewer organizations,
/// and fewer organizations can mean the better role.
#[tokio::test]
async fn nobody_hides_an_organization_by_asking_for_less() {
    let company = Company::start(Backend::Sqlite).await;
    let browser = Browser::new();
    let start = format!("{}/auth/sso/{}/login?return_to=/canvas", company.world.server.url, company.connection);
    let stop = |url: &Url| url.path() == "/login/oauth/authorize";
    let page = browser.visit(Method::GET, Url::parse(&start).expect("an address"), &[], stop).await;
    let mut altered = page.url.clone();
    let query: Vec<(String, String)> = page.url.query_pairs().into_owned().collect();
    altered.query_pairs_mut().clear().extend_pairs(
        query.iter().map(|(name, value)| {
            (name.as_str(), if name == "scope" { "read:user user:email" } else { value.as_str() })
        }),
    );
    assert_ne!(altered, page.url);
    let page = browser.visit(Method::GET, altered, &[], |url| url.path() == "/canvas").await;
    assert_eq!((page.status, page.url.path()), (403, "/auth/sso/callback"), "{page:?}");
    assert!(page.text.contains("read:org"), "{}", page.text);
    assert_eq!(company.me(&browser).await.status, 401);
}

/// Whether the links of people still hold depends on where the configuration leads, which only the plugin can say.
#[tokio::test]
async fn the_provider_does_not_change_while_the_plugin_cannot_say_to_which() {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_PLUGIN_TRIP_FAILURES", "1");
    let setup = setup.with("KAIZEN_PLUGIN_TRIP_SECONDS", "300");
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let company = Company::with(setup, json!({ "api_url": nobody })).await;
    let owner = &company.tenant.owner;
    let path = format!("/api/v1/identity-connections/{}", company.connection);
    let before = owner.get(&path).await.ok(200);
    // The plugin asks an API that is away: its calls are suspended from now on.
    let browser = Browser::new();
    let page = company.begin(&browser, "/canvas").await;
    assert_eq!(page.status, 502, "{page:?}");
    let elsewhere = json!({
        "config": { "url": "http://127.0.0.1:1" }, "secrets": { "client-secret": CLIENT_SECRET },
    });
    let refused = owner.patch(&path, elsewhere.clone()).await;
    assert_eq!(refused.header("retry-after"), "5");
    let problem = refused.problem(503, "unavailable");
    assert!(problem["detail"].as_str().expect("text").contains("cannot say now which provider"), "{problem}");
    assert_eq!(owner.get(&path).await.ok(200)["config"], before["config"]);
    // What does not depend on that can be changed.
    assert_eq!(owner.patch(&path, json!({ "name": "another" })).await.ok(200)["name"], "another");
    owner.patch(&path, json!({ "active": false })).await.ok(200);
    owner.patch(&path, elsewhere.clone()).await.problem(503, "unavailable");
    // Once a check has found that its calls go on, it can say so again.
    owner.post(&format!("{path}/check"), json!({})).await.ok(200);
    owner.patch(&path, elsewhere).await.ok(200);
}
