//! Signing in at the company's own provider: the real `oidc-provider`, a scripted browser, and the `oidc` plugin.

use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::harness::{Answer, Backend, Browser, CLIENT_ID, CLIENT_SECRET, Client, Page, Provider, Tenant, World, id};

on_both!(
    someone_signs_in_at_their_company,
    an_address_that_is_not_verified_opens_no_existing_account,
    a_callback_that_was_not_asked_for_is_refused,
    new_keys_at_the_provider_are_found,
    a_connection_that_is_off_signs_nobody_in,
    newcomers_get_the_roles_that_their_connection_gives,
    newcomers_without_a_role_stay_out,
);

/// What would fail for everybody who signs in is told to the administrator who asks.
#[tokio::test]
async fn a_check_finds_a_provider_that_is_not_what_the_connection_says() {
    let company = Company::start(Backend::Sqlite, people()).await;
    let owner = &company.tenant.owner;
    let one = format!("/api/v1/identity-connections/{}", company.connection);
    let check = async || owner.post(&format!("{one}/check"), json!({})).await;
    check().await.ok(200);
    let issuer = &company.provider.issuer;
    for (wrong, why) in [(format!("{issuer}/"), "unexpected issuer"), (format!("{issuer}/elsewhere"), "404")] {
        owner.patch(&one, json!({ "config": { "issuer": wrong } })).await.ok(200);
        let problem = check().await.problem(502, "upstream");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(why)), "{problem}");
    }
    // What can't be right whatever the provider says is not even stored.
    for config in [json!({ "issuer": format!("{issuer}?a=b") }), json!({ "parameters": { "state": "mine" } })] {
        owner.patch(&one, json!({ "config": config })).await.problem(422, "invalid");
    }
    owner.patch(&one, json!({ "config": { "issuer": issuer } })).await.ok(200);
    check().await.ok(200);
}

/// A server with a provider and a connection to it.
struct Company {
    world: World,
    tenant: Tenant,
    provider: Provider,
    connection: String,
}

impl Company {
    async fn start(backend: Backend, claims: Value) -> Self {
        Self::with(backend, claims, json!({})).await
    }

    /// With more in the connection's configuration.
    async fn with(backend: Backend, claims: Value, config: Value) -> Self {
        let world = World::start(backend).await;
        let provider = Provider::start(&format!("{}/auth/sso/callback", world.server.url), claims).await;
        let tenant = world.tenant("acme").await;
        let mut body = json!({
            "name": "company",
            "plugin": "oidc",
            "config": { "issuer": provider.issuer, "client_id": CLIENT_ID, "scopes": ["openid", "email", "profile", "groups"] },
            "secrets": { "client-secret": CLIENT_SECRET },
        });
        body["config"].as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
        let connection = id(&tenant.owner.create("/api/v1/identity-connections", body).await);
        Self { world, tenant, provider, connection }
    }

    fn start_at(&self) -> String {
        format!("{}/auth/sso/{}/login?return_to=/canvas", self.world.server.url, self.connection)
    }

    /// Signs in as this login name; returns the browser and where it ended.
    async fn sign_in(&self, login: &str) -> (Browser, Page) {
        let browser = Browser::new();
        let home = self.world.server.url.clone();
        let page = browser.sign_in(&self.start_at(), login, |url| url.as_str() == format!("{home}/canvas")).await;
        (browser, page)
    }

    /// Who the server takes the browser for.
    async fn me(&self, browser: &Browser) -> Answer {
        let url = format!("{}/api/v1/auth/me", self.world.server.url);
        let response = browser.http().get(&url).send().await.expect("an answer");
        Answer::read(format!("GET {url}"), response).await
    }
}

fn people() -> Value {
    json!({
        "ada": { "email": "ada@acme.test", "email_verified": true, "name": "Ada", "groups": ["engineers"] },
        "mallory": { "email": "owner@acme.test", "email_verified": false, "name": "Mallory" },
        "silent": { "email": "owner@acme.test", "name": "Silent" },
    })
}

async fn someone_signs_in_at_their_company(backend: Backend) {
    let company = Company::start(backend, people()).await;
    // Ada is known by her address; her company vouches for it.
    let body = json!({ "email": "ada@acme.test", "name": "Ada" });
    let ada = id(&company.tenant.owner.create("/api/v1/users", body).await);
    let checked = company
        .tenant
        .owner
        .post(&format!("/api/v1/identity-connections/{}/check", company.connection), json!({}))
        .await;
    checked.ok(200);
    let (browser, page) = company.sign_in("ada").await;
    assert!(page.url.path() == "/canvas", "{page:?}");
    let authorization = page.way.iter().find(|url| url.path().ends_with("/auth")).expect("the provider's own page");
    let query: std::collections::BTreeMap<_, _> = authorization.query_pairs().into_owned().collect();
    for name in ["state", "nonce", "code_challenge"] {
        assert!(query.get(name).is_some_and(|value| value.len() >= 16), "{name}: {authorization}");
    }
    assert_eq!(query.get("code_challenge_method").map(String::as_str), Some("S256"));
    let me = company.me(&browser).await.ok(200);
    assert_eq!(me["user"]["id"], ada.as_str(), "{me}");

    // Again: the same person, now linked by the provider's own subject.
    let (browser, _) = company.sign_in("ada").await;
    assert_eq!(company.me(&browser).await.ok(200)["user"]["id"], ada.as_str());
    let events = company.tenant.owner.all("/api/v1/audit/events").await;
    let logins: Vec<_> =
        events.iter().filter(|e| e["action"] == "auth.login" && e["actor"] == format!("user/{ada}")).collect();
    assert_eq!(logins.len(), 2, "{events:?}");
    let log = company.world.server.log();
    assert!(!log.contains(CLIENT_SECRET) && !log.contains("code="), "a secret is in the log");
}

async fn an_address_that_is_not_verified_opens_no_existing_account(backend: Backend) {
    let company = Company::start(backend, people()).await;
    for login in ["mallory", "silent"] {
        let (browser, page) = company.sign_in(login).await;
        assert_ne!(page.url.path(), "/canvas", "{login}: {page:?}");
        let me = company.me(&browser).await;
        assert_ne!(me.body["user"]["id"], company.tenant.owner.id.as_str(), "{login} is taken for the owner");
        assert_eq!(me.status, 401, "{}", me.text);
    }
}

async fn a_callback_that_was_not_asked_for_is_refused(backend: Backend) {
    let company = Company::start(backend, people()).await;
    let body = json!({ "email": "ada@acme.test", "name": "Ada" });
    company.tenant.owner.create("/api/v1/users", body).await;
    let callback = format!("{}/auth/sso/callback", company.world.server.url);
    let fresh = Client::new("");
    for query in ["", "?code=x", "?code=x&state=made-up", "?error=access_denied&state=made-up"] {
        let answer = fresh.http.get(format!("{callback}{query}")).send().await.expect("an answer");
        assert!((400..500).contains(&answer.status().as_u16()), "{query}: {}", answer.status());
        assert!(
            answer
                .headers()
                .get("set-cookie")
                .is_none_or(|cookie| !cookie.to_str().expect("text").starts_with("__Host-kaizen="))
        );
    }
    // A sign-in that one browser began is not finished by another: login CSRF.
    let victim = Browser::new();
    let attacker = Browser::new();
    let home = company.world.server.url.clone();
    let stopped = attacker
        .sign_in(&company.start_at(), "ada", |url| url.as_str().starts_with(&format!("{home}/auth/sso/callback")))
        .await;
    assert!(stopped.url.query().is_some_and(|query| query.contains("code=")), "{stopped:?}");
    let taken = victim.visit(Method::GET, stopped.url.clone(), &[], |_| false).await;
    assert!((400..500).contains(&taken.status), "{taken:?}");
    assert_eq!(company.me(&victim).await.status, 401);
    // And it was used up, or is still the attacker's own; in no case does it work twice.
    attacker.visit(Method::GET, stopped.url.clone(), &[], |url| url.path() == "/canvas").await;
    let again = attacker.visit(Method::GET, stopped.url, &[], |url| url.path() == "/canvas").await;
    assert!((400..500).contains(&again.status), "{again:?}");

    // Only our own pages are returned to.
    for elsewhere in ["https://evil.example.com", "//evil.example.com", "/\\evil.example.com"] {
        let mut start = Url::parse(&company.start_at()).expect("an address");
        start.query_pairs_mut().clear().append_pair("return_to", elsewhere);
        let answer = fresh.http.get(start).send().await.expect("an answer").status().as_u16();
        assert!((400..500).contains(&answer), "{elsewhere}: {answer}");
    }
}

async fn new_keys_at_the_provider_are_found(backend: Backend) {
    let company = Company::start(backend, people()).await;
    let body = json!({ "email": "ada@acme.test", "name": "Ada" });
    let ada = id(&company.tenant.owner.create("/api/v1/users", body).await);
    let (browser, _) = company.sign_in("ada").await;
    assert_eq!(company.me(&browser).await.ok(200)["user"]["id"], ada.as_str());
    company.provider.rotate_keys().await;
    let (browser, page) = company.sign_in("ada").await;
    assert_eq!(page.url.path(), "/canvas", "{page:?}");
    assert_eq!(company.me(&browser).await.ok(200)["user"]["id"], ada.as_str());
}

async fn a_connection_that_is_off_signs_nobody_in(backend: Backend) {
    let company = Company::start(backend, people()).await;
    let one = format!("/api/v1/identity-connections/{}", company.connection);
    let listed = company.world.client().get("/api/v1/auth/connections?email=ada@acme.test").await.ok(200);
    assert!(!listed.to_string().contains(CLIENT_SECRET), "{listed}");
    company.tenant.owner.patch(&one, json!({ "active": false })).await.ok(200);
    let answer = Client::new("").http.get(company.start_at()).send().await.expect("an answer");
    assert_eq!(answer.status(), 404);
    company.tenant.owner.delete(&one).await.ok(204);
    let answer = Client::new("").http.get(company.start_at()).send().await.expect("an answer");
    assert_eq!(answer.status(), 404);
}

fn newcomers() -> Value {
    json!({
        "dee": { "email": "dee@acme.test", "email_verified": true, "name": "Dee", "groups": ["engineers", "revision"] },
        "guest": { "email": "guest@acme.test", "email_verified": true, "groups": ["everyone"] },
        "liar": { "email": "liar@acme.test", "email_verified": false, "groups": ["engineers"] },
    })
}

/// The roles in an answer of `/api/v1/auth/me`.
fn roles(me: &Value) -> Vec<String> {
    let roles = me["roles"].as_array().expect("roles").iter();
    let mut roles: Vec<String> = roles.map(|held| held["role"].as_str().expect("a role").to_owned()).collect();
    roles.sort();
    roles
}

async fn newcomers_get_the_roles_that_their_connection_gives(backend: Backend) {
    let config = json!({
        "default_role": "viewer",
        "group_roles": { "engineers": "developer", "revision": "auditor", "bosses": "admin" },
    });
    let company = Company::with(backend, newcomers(), config).await;
    let owner = &company.tenant.owner;
    for (login, expected) in [("dee", vec!["auditor", "developer"]), ("guest", vec!["viewer"])] {
        let (browser, page) = company.sign_in(login).await;
        assert_eq!(page.url.path(), "/canvas", "{login}: {page:?}");
        let me = company.me(&browser).await.ok(200);
        assert_eq!(roles(&me), expected, "{me}");
        assert_eq!(me["user"]["email"], format!("{login}@acme.test"), "{me}");
        assert_eq!(me["organization"]["id"], company.tenant.id.as_str(), "{me}");
        // Again: the same user, with the same roles once.
        let (browser, _) = company.sign_in(login).await;
        let again = company.me(&browser).await.ok(200);
        assert_eq!((&again["user"]["id"], roles(&again)), (&me["user"]["id"], roles(&me)));
        let events = owner.all("/api/v1/audit/events").await;
        let target = format!("user/{}", me["user"]["id"].as_str().expect("an id"));
        let made: Vec<&Value> =
            events.iter().filter(|e| e["action"] == "user.create" && e["target"] == target.as_str()).collect();
        assert_eq!(made.len(), 1, "{events:?}");
        let mut given: Vec<String> =
            serde_json::from_value(made[0]["details"]["changes"]["roles"].clone()).expect("a list of roles");
        given.sort();
        assert_eq!(given, expected, "{made:?}");
    }

    // The group decides on the first day only; what the organization changes afterwards stays.
    let (browser, _) = company.sign_in("dee").await;
    let dee = company.me(&browser).await.ok(200);
    for membership in owner.all("/api/v1/memberships").await {
        if membership["user_id"] == dee["user"]["id"] {
            owner.delete(&format!("/api/v1/memberships/{}", id(&membership))).await.ok(204);
        }
    }
    let (browser, _) = company.sign_in("dee").await;
    assert_eq!(roles(&company.me(&browser).await.ok(200)), [""; 0]);

    // What cannot be given away by a provider is refused when it is configured.
    let one = format!("/api/v1/identity-connections/{}", company.connection);
    for config in [json!({ "default_role": "owner" }), json!({ "group_roles": { "engineers": "owner" } })] {
        let problem = owner.patch(&one, json!({ "config": config })).await.problem(422, "invalid");
        let pointer = problem["errors"][0]["pointer"].as_str().expect("a pointer").to_owned();
        assert!(pointer.starts_with("/config/"), "{problem}");
    }
}

async fn newcomers_without_a_role_stay_out(backend: Backend) {
    let company = Company::with(backend, newcomers(), json!({ "group_roles": { "engineers": "developer" } })).await;
    let owner = &company.tenant.owner;
    for (login, why) in [("guest", "There is no account for guest@acme.test"), ("liar", "does not vouch for")] {
        let (browser, page) = company.sign_in(login).await;
        assert_eq!(page.status, 403, "{login}: {page:?}");
        assert!(page.text.contains(why), "{login}: {}", page.text);
        assert_eq!(company.me(&browser).await.status, 401);
    }
    assert_eq!(owner.all("/api/v1/users").await.len(), 1, "the owner alone");
    let events = owner.all("/api/v1/audit/events").await;
    let refused = events.iter().filter(|e| e["action"] == "auth.login" && e["outcome"] == "failure");
    assert_eq!(refused.count(), 2, "{events:?}");
    // Once it gives newcomers a role, the same person comes in.
    let one = format!("/api/v1/identity-connections/{}", company.connection);
    owner.patch(&one, json!({ "config": { "default_role": "viewer" } })).await.ok(200);
    let (browser, page) = company.sign_in("guest").await;
    assert_eq!(page.url.path(), "/canvas", "{page:?}");
    assert_eq!(roles(&company.me(&browser).await.ok(200)), ["viewer"]);
}
