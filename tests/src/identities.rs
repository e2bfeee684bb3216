//! Who is whom: addresses that look alike, one address of two people, a provider that takes another's place, and passwords
//! as a way past a provider.

use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::harness::{
    Answer, Backend, Browser, CLIENT_ID, CLIENT_SECRET, Issuer, PASSWORD, Page, Tenant, World, eventually, id,
};

on_both!(
    a_look_alike_address_opens_nobodys_account,
    attributes_that_are_left_out_are_told,
    another_subject_does_not_take_over_an_address,
    another_issuers_subject_is_another_person,
    a_newcomer_with_two_tabs_comes_in_with_both,
    a_password_is_no_way_past_a_provider,
);

/// A server with a tenant that signs people in at a provider of ours.
pub struct Company {
    pub world: World,
    pub tenant: Tenant,
    pub issuer: Issuer,
    pub connection: String,
}

impl Company {
    /// With more in the connection's configuration.
    pub async fn start(backend: Backend, config: Value) -> Self {
        Self::at(World::start(backend).await, config).await
    }

    pub async fn at(world: World, config: Value) -> Self {
        let issuer = Issuer::start().await;
        let tenant = world.tenant("acme").await;
        let connection = connect(&tenant, "company", &issuer.url, config).await;
        Self { world, tenant, issuer, connection }
    }

    pub fn one(&self) -> String {
        format!("/api/v1/identity-connections/{}", self.connection)
    }

    /// Begins a sign-in in this browser and follows it up to an address that `stop` accepts, or to the page it ends at.
    pub async fn follow(&self, browser: &Browser, stop: impl Fn(&Url) -> bool) -> Page {
        let start = format!("{}/auth/sso/{}/login?return_to=/canvas", self.world.server.url, self.connection);
        browser.visit(Method::GET, Url::parse(&start).expect("an address"), &[], stop).await
    }

    /// Signs in with a browser of its own.
    pub async fn sign_in(&self) -> (Browser, Page) {
        let browser = Browser::new();
        let page = self.follow(&browser, |url| url.path() == "/canvas").await;
        (browser, page)
    }

    /// Who the server takes the browser for.
    pub async fn me(&self, browser: &Browser) -> Answer {
        let url = format!("{}/api/v1/auth/me", self.world.server.url);
        Answer::read(format!("GET {url}"), browser.http().get(&url).send().await.expect("an answer")).await
    }

    /// Signs in with a browser of its own, and tells who that is.
    async fn signed_in(&self) -> Value {
        let (browser, page) = self.sign_in().await;
        assert_eq!(page.url.path(), "/canvas", "{page:?}");
        self.me(&browser).await.ok(200)["user"].clone()
    }

    /// Fails to sign in with a browser of its own: the page's text.
    async fn refused(&self, status: u16) -> String {
        let (browser, page) = self.sign_in().await;
        assert_eq!((page.status, page.url.path()), (status, "/auth/sso/callback"), "{page:?}");
        self.me(&browser).await.problem(401, "unauthenticated");
        page.text
    }

    /// The latest event of an action with this outcome.
    pub async fn event(&self, action: &str, outcome: &str) -> Value {
        let events = self.tenant.owner.all("/api/v1/audit/events").await;
        let found = events.iter().filter(|e| e["action"] == action && e["outcome"] == outcome);
        found.max_by_key(|event| event["sequence"].as_i64()).unwrap_or_else(|| panic!("{action}: {events:?}")).clone()
    }
}

/// An identity connection to a provider of ours.
pub async fn connect(tenant: &Tenant, name: &str, issuer: &str, config: Value) -> String {
    let mut body = json!({
        "name": name, "plugin": "oidc", "config": { "issuer": issuer, "client_id": CLIENT_ID },
        "secrets": { "client-secret": CLIENT_SECRET },
    });
    body["config"].as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
    id(&tenant.owner.create("/api/v1/identity-connections", body).await)
}

async fn attributes_that_are_left_out_are_told(backend: Backend) {
    let config = json!({ "default_role": "viewer", "attributes": ["team", "town"] });
    let company = Company::start(backend, config).await;
    let says = |team: &str| {
        let known = json!({ "sub": "1", "email": "ada@acme.test", "email_verified": true });
        let mut claims = known.as_object().expect("claims").clone();
        claims.extend([("team".to_owned(), json!(team)), ("town".to_owned(), json!("Næstved"))]);
        company.issuer.says(claims.into());
    };
    let attributes = async || {
        let users = company.tenant.owner.all("/api/v1/users").await;
        users.iter().find(|user| user["email"] == "ada@acme.test").expect("Ada")["attributes"].clone()
    };
    says("Yazılım");
    company.signed_in().await;
    assert_eq!(attributes().await, json!({ "team": "Yazılım", "town": "Næstved" }));
    let event = company.event("auth.login", "success").await;
    assert!(event["details"].get("attributes_left_out").is_none(), "{event}");
    // In Cyrillic letters.
    says("\u{501}\u{435}\u{475}");
    company.signed_in().await;
    assert_eq!(attributes().await, json!({ "town": "Næstved" }), "what it said before does not hold any more");
    let event = company.event("auth.login", "success").await;
    assert_eq!(event["details"]["attributes_left_out"], json!(["team"]), "{event}");
    eventually("the log names them", || async {
        company.world.server.log().contains("attributes that a provider sent are not accepted").then_some(())
    })
    .await;
}

async fn a_look_alike_address_opens_nobodys_account(backend: Backend) {
    let company = Company::start(backend, json!({ "default_role": "viewer" })).await;
    let owner = &company.tenant.owner;
    let kim = company.tenant.person("kim", "developer").await;
    // KELVIN SIGN, which is `k` in lower case; full-width; with what nobody sees.
    for email in ["\u{212A}im@acme.test", "\u{FF4B}im@acme.test", "k\u{200B}im@acme.test", "kim@acme\u{AD}.test"] {
        company.issuer.vouches(email, email);
        let page = company.refused(403).await;
        assert!(page.contains("not accepted here"), "{page}");
        let event = company.event("auth.login", "failure").await;
        assert_eq!(event["details"]["code"], "email_not_accepted", "{event}");
        owner.post("/api/v1/users", json!({ "email": email, "name": "Kim" })).await.fault("/email");
        let login = json!({ "email": email, "password": PASSWORD });
        company.world.client().post("/api/v1/auth/login", login).await.fault("/email");
        let doors = format!("/api/v1/auth/connections?email={email}");
        company.world.client().get(&doors).await.fault("email");
        let args = ["admin", "set-password", "--email", email, "--password-stdin"];
        let ran = company.world.setup.run(&args, "another marble window\n").await;
        assert!(!ran.status.success() && ran.stderr.contains("an e-mail address"), "{ran:?}");
    }
    assert_eq!(owner.all("/api/v1/users").await.len(), 2, "the owner and Kim");
    // What is the same address is the same person, by whatever door.
    company.issuer.vouches("1", "KIM@Acme.TEST");
    assert_eq!(company.signed_in().await["id"], kim.id.as_str());
    let dee = owner.create("/api/v1/users", json!({ "email": "Dee@B\u{FC}cher.test", "name": "Dee" })).await;
    assert_eq!(dee["email"], "dee@xn--bcher-kva.test");
    company.issuer.vouches("2", "dee@b\u{FC}cher.test");
    assert_eq!(company.signed_in().await["id"], dee["id"]);
}

async fn another_subject_does_not_take_over_an_address(backend: Backend) {
    let company = Company::start(backend, json!({ "default_role": "viewer" })).await;
    let owner = &company.tenant.owner;
    let ada = company.tenant.person("ada", "admin").await;
    company.issuer.vouches("subject-a", &ada.email);
    assert_eq!(company.signed_in().await["id"], ada.id.as_str());
    // Her mailbox is somebody else's now.
    company.issuer.vouches("subject-b", &ada.email);
    let page = company.refused(403).await;
    assert!(page.contains("another identity of the same provider") && page.contains("administrator"), "{page}");
    let event = company.event("auth.login", "failure").await;
    let details = &event["details"];
    assert_eq!(details["code"], "another_subject", "{event}");
    assert_eq!((&details["subject"], &details["linked_subjects"]), (&json!("subject-b"), &json!(["subject-a"])));
    assert_eq!(event["target"], format!("user/{}", ada.id));
    // She herself still comes in.
    company.issuer.vouches("subject-a", &ada.email);
    assert_eq!(company.signed_in().await["id"], ada.id.as_str());

    // The way out: who may change her account sees the link, and removes it.
    let links = format!("/api/v1/users/{}/identities", ada.id);
    let developer = company.tenant.person("dev", "developer").await;
    developer.get(&links).await.problem(403, "denied");
    let listed = ada.get(&links).await.ok(200);
    assert_eq!(listed["items"][0]["subject"], "subject-a", "{listed}");
    assert_eq!(listed["items"][0]["issuer"], company.issuer.url, "{listed}");
    let link = format!("{links}/{}", id(&listed["items"][0]));
    developer.delete(&link).await.problem(403, "denied");
    let other = company.world.tenant("rival").await;
    other.owner.delete(&link).await.problem(404, "not_found");
    let of_dev = format!("/api/v1/users/{}/identities/{}", developer.id, id(&listed["items"][0]));
    owner.delete(&of_dev).await.problem(404, "not_found");
    owner.delete(&link).await.ok(204);
    owner.delete(&link).await.problem(404, "not_found");
    ada.get("/api/v1/auth/me").await.problem(401, "unauthenticated");
    let event = company.event("user.update", "success").await;
    assert_eq!(event["details"]["changes"]["identity_removed"]["subject"], "subject-a", "{event}");
    company.issuer.vouches("subject-b", &ada.email);
    assert_eq!(company.signed_in().await["id"], ada.id.as_str());
    company.issuer.vouches("subject-a", &ada.email);
    company.refused(403).await;
    // An owner's account is an owner's matter.
    let admin = company.tenant.person("boss", "admin").await;
    admin.get(&format!("/api/v1/users/{}/identities", owner.id)).await.problem(403, "denied");
    // Or the person before is removed, and whoever has the address now gets a user of their own.
    owner.delete(&format!("/api/v1/users/{}", ada.id)).await.ok(204);
    let newcomer = company.signed_in().await;
    assert_ne!(newcomer["id"], ada.id.as_str());
}

async fn another_issuers_subject_is_another_person(backend: Backend) {
    let company = Company::start(backend, json!({})).await;
    let owner = &company.tenant.owner;
    let ada = company.tenant.person("ada", "admin").await;
    let bob = company.tenant.person("bob", "viewer").await;
    company.issuer.vouches("1", &ada.email);
    assert_eq!(company.signed_in().await["id"], ada.id.as_str());
    let second = Issuer::start().await;
    let moved = |issuer: &str| json!({ "config": { "issuer": issuer }, "secrets": { "client-secret": CLIENT_SECRET } });
    owner.patch(&company.one(), moved(&second.url)).await.ok(200);
    let event = company.event("identity_connection.update", "success").await;
    assert_eq!(event["details"]["changes"]["identities_removed"], 1, "{event}");
    // Its `1` is Bob.
    second.vouches("1", &bob.email);
    assert_eq!(company.signed_in().await["id"], bob.id.as_str());
    // A change of something else keeps the links: nobody vouches for an address here.
    owner.patch(&company.one(), json!({ "config": { "parameters": { "prompt": "login" } } })).await.ok(200);
    second.says(json!({ "sub": "1" }));
    assert_eq!(company.signed_in().await["id"], bob.id.as_str());
    // And back: whoever was linked before is not any more.
    owner.patch(&company.one(), moved(&company.issuer.url)).await.ok(200);
    company.issuer.says(json!({ "sub": "1" }));
    company.refused(403).await;
}

async fn a_newcomer_with_two_tabs_comes_in_with_both(backend: Backend) {
    let company = Company::start(backend, json!({ "default_role": "viewer" })).await;
    let known = company.tenant.person("known", "viewer").await;
    for round in 0..8 {
        // In one round somebody who has a user already.
        let email = if round == 0 { known.email.clone() } else { format!("new{round}@acme.test") };
        company.issuer.vouches(&format!("subject-{round}"), &email);
        let tabs = [Browser::new(), Browser::new(), Browser::new()];
        let mut callbacks = Vec::new();
        for tab in &tabs {
            callbacks.push(company.follow(tab, |url| url.path() == "/auth/sso/callback").await.url);
        }
        let arrive = tabs
            .iter()
            .zip(callbacks)
            .map(|(tab, url)| tab.visit(Method::GET, url, &[], |url| url.path() == "/canvas"));
        let pages = futures::future::join_all(arrive).await;
        let mut users = Vec::new();
        for (tab, page) in tabs.iter().zip(pages) {
            assert_eq!(page.url.path(), "/canvas", "round {round}: {page:?}");
            users.push(company.me(tab).await.ok(200)["user"]["id"].clone());
        }
        assert!(users.iter().all(|user| *user == users[0]), "{users:?}");
    }
    let made = company.tenant.owner.all("/api/v1/users").await.len();
    assert_eq!(made, 2 + 7, "one user for each newcomer");
}

async fn a_password_is_no_way_past_a_provider(backend: Backend) {
    let company = Company::start(backend, json!({ "default_role": "viewer" })).await;
    let owner = &company.tenant.owner;
    let admin = company.tenant.person("boss", "admin").await;
    let new = "another marble window thimble";
    // One who signs in at the provider only has a session, and no more.
    company.issuer.vouches("1", "ada@acme.test");
    let (browser, _) = company.sign_in().await;
    let ada = id(&company.me(&browser).await.ok(200)["user"]);
    let one = format!("/api/v1/users/{ada}");
    for role in ["admin", "owner"] {
        company.tenant.owner.create("/api/v1/memberships", json!({ "user_id": ada, "role": role })).await;
        let url = format!("{}{one}", company.world.server.url);
        let request = browser.http().patch(&url).header("origin", &company.world.server.url);
        let answer = request.json(&json!({ "password": new })).send().await.expect("an answer");
        let problem = Answer::read(format!("PATCH {one}"), answer).await.problem(403, "denied");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("another owner")), "{problem}");
    }
    let event = company.event("user.update", "denied").await;
    assert_eq!(event["actor"], format!("user/{ada}"), "{event}");
    // An administrator gives no password to whoever has none, or is linked; and none to a new user.
    company.issuer.vouches("2", "bob@acme.test");
    let bob = company.signed_in().await;
    let bob = format!("/api/v1/users/{}", id(&bob));
    admin.patch(&bob, json!({ "password": new })).await.problem(403, "denied");
    owner.patch(&bob, json!({ "password": new })).await.ok(200);
    admin.patch(&bob, json!({ "password": PASSWORD })).await.problem(403, "denied");
    let body = json!({ "email": "eve@acme.test", "name": "Eve", "password": new });
    admin.post("/api/v1/users", body.clone()).await.problem(403, "denied");
    admin.create("/api/v1/users", json!({ "email": "dee@acme.test", "name": "Dee" })).await;
    // Where nobody signs in elsewhere, that is how people come in; who forgot theirs gets another one.
    owner.patch(&company.one(), json!({ "active": false })).await.ok(200);
    let eve = admin.create("/api/v1/users", body).await;
    admin.patch(&format!("/api/v1/users/{}", id(&eve)), json!({ "password": PASSWORD })).await.ok(200);
    // One's own is changed with the current one.
    let own = format!("/api/v1/users/{}", admin.id);
    admin.patch(&own, json!({ "password": new })).await.fault("/current_password");
    admin.patch(&own, json!({ "password": new, "current_password": PASSWORD })).await.ok(200);
    // A platform administrator is no exception.
    let operator = company.world.operator().await;
    let staff = operator.stranger("staff").await;
    operator.grant(&staff, "admin", None).await;
    let plain = operator.owner.create("/api/v1/users", json!({ "email": "ops@operator.test", "name": "Ops" })).await;
    let plain = format!("/api/v1/users/{}", id(&plain));
    staff.patch(&plain, json!({ "password": new })).await.problem(403, "denied");
    operator.owner.patch(&plain, json!({ "password": new })).await.ok(200);
}
