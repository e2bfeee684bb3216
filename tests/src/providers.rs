//! Identity providers beside plain `oidc`: Entra with groups from Graph, Okta's authorization servers, GitHub's OAuth 2.

use reqwest::Url;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Backend, Browser, CLIENT_ID, CLIENT_SECRET, OAuth2, Page, Provider, Reply, Stub, Tenant, World, id,
};

on_both!(
    entra_gives_the_groups_that_are_too_many_for_its_token,
    okta_signs_in_at_a_custom_authorization_server,
    github_signs_in_by_the_verified_address_with_organizations_as_groups,
);

const TENANT_ID: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";

/// A server with an organization that may have identity connections.
struct Company {
    world: World,
    tenant: Tenant,
}

impl Company {
    async fn start(backend: Backend) -> Self {
        let world = World::start(backend).await;
        let tenant = world.tenant("acme").await;
        Self { world, tenant }
    }

    fn callback(&self) -> String {
        format!("{}/auth/sso/callback", self.world.server.url)
    }

    async fn connect(&self, plugin: &str, mut config: Value) -> String {
        config["client_id"] = CLIENT_ID.into();
        let body = json!({
            "name": plugin, "plugin": plugin, "config": config, "secrets": { "client-secret": CLIENT_SECRET },
        });
        id(&self.tenant.owner.create("/api/v1/identity-connections", body).await)
    }

    async fn sign_in(&self, connection: &str, login: &str) -> (Browser, Page) {
        let browser = Browser::new();
        let home = self.world.server.url.clone();
        let start = format!("{home}/auth/sso/{connection}/login?return_to=/canvas");
        let page = browser.sign_in(&start, login, |url| url.as_str() == format!("{home}/canvas")).await;
        (browser, page)
    }

    /// Who the server takes the browser for.
    async fn me(&self, browser: &Browser) -> Answer {
        let url = format!("{}/api/v1/auth/me", self.world.server.url);
        let response = browser.http().get(&url).send().await.expect("an answer");
        Answer::read(format!("GET {url}"), response).await
    }

    /// The roles of whoever is signed in.
    async fn roles(&self, browser: &Browser) -> Vec<String> {
        let user = self.me(browser).await.ok(200)["user"]["id"].clone();
        let memberships = self.tenant.owner.all("/api/v1/memberships").await;
        let own = memberships.iter().filter(|membership| membership["user_id"] == user);
        own.filter_map(|membership| membership["role"].as_str().map(str::to_owned)).collect()
    }

    fn no_secret_in_the_log(&self, others: &[String]) {
        let log = self.world.server.log();
        assert!(!log.contains(CLIENT_SECRET), "the client secret is in the log");
        assert!(others.iter().all(|secret| !log.contains(secret.as_str())), "a token is in the log");
    }
}

async fn entra_gives_the_groups_that_are_too_many_for_its_token(backend: Backend) {
    let company = Company::start(backend).await;
    let claims = json!({
        "ada": {
            "tid": TENANT_ID, "oid": "ada-oid", "hasgroups": true, "email": "ada@acme.test", "xms_edov": true, "name": "Ada",
        },
        "eve": {
            "tid": "00000000-0000-0000-0000-000000000000", "oid": "eve-oid", "email": "eve@acme.test", "xms_edov": true,
        },
        "bob": { "tid": TENANT_ID, "oid": "bob-oid", "email": "bob@acme.test", "email_verified": true },
    });
    let provider = Provider::start_at(&format!("/{TENANT_ID}/v2.0"), &company.callback(), claims).await;
    let graph = Stub::start(|seen| {
        let host = seen.headers["host"].to_str().expect("text");
        let group = |id: &str| json!({ "@odata.type": "#microsoft.graph.group", "id": id });
        Reply::Json(
            200,
            if seen.path.contains("skiptoken") {
                json!({ "value": [group("engineers")] })
            } else {
                json!({
                    "value": [group("everyone"), { "@odata.type": "#microsoft.graph.directoryRole", "id": "role" }],
                    "@odata.nextLink": format!("http://{host}/v1.0/me/transitiveMemberOf?$skiptoken=x"),
                })
            },
        )
    })
    .await;
    let config = json!({
        "tenant_id": TENANT_ID, "authority": provider.origin(), "graph_url": graph.url,
        "group_roles": { "engineers": "developer", "role": "admin" }, "default_role": "viewer",
    });
    let connection = company.connect("entra", config).await;
    let check = format!("/api/v1/identity-connections/{connection}/check");
    company.tenant.owner.post(&check, json!({})).await.ok(200);

    let (browser, page) = company.sign_in(&connection, "ada").await;
    assert_eq!(page.url.path(), "/canvas", "{page:?}");
    let me = company.me(&browser).await.ok(200);
    assert_eq!(me["user"]["email"], "ada@acme.test", "{me}");
    assert_eq!(company.roles(&browser).await, ["developer"], "by a group on the second page");
    let asked = graph.seen();
    assert_eq!(asked.len(), 2);
    for seen in &asked {
        let authorization = seen.headers["authorization"].to_str().expect("text");
        assert_eq!(provider.whose(authorization).await, "ada", "the sign-in's own access token");
    }

    // Another tenant's people, and those whose address nobody vouches for.
    for login in ["eve", "bob"] {
        let (browser, page) = company.sign_in(&connection, login).await;
        assert_ne!(page.url.path(), "/canvas", "{login}: {page:?}");
        assert_eq!(company.me(&browser).await.status, 401);
    }
    assert_eq!(graph.seen().len(), 2, "they had no groups to ask for");
    let events = company.tenant.owner.all("/api/v1/audit/events").await;
    let refused = events.iter().filter(|e| e["action"] == "auth.login" && e["outcome"] == "failure");
    let reasons: Vec<&str> = refused.filter_map(|e| e["details"]["reason"].as_str()).collect();
    assert!(reasons.len() == 2 && reasons.iter().any(|why| why.contains("another tenant")), "{reasons:?}");

    // Without the groups nobody comes in, whoever they are.
    drop(graph);
    let (browser, page) = company.sign_in(&connection, "ada").await;
    assert_ne!(page.url.path(), "/canvas", "{page:?}");
    assert_eq!(company.me(&browser).await.status, 401);
    company.no_secret_in_the_log(&[]);
}

async fn okta_signs_in_at_a_custom_authorization_server(backend: Backend) {
    let company = Company::start(backend).await;
    let claims = json!({
        "00u1": { "email": "ada@acme.test", "email_verified": true, "name": "Ada", "groups": ["Everyone", "Engineers"] },
        "00u2": { "email": "owner@acme.test", "email_verified": false, "groups": ["Engineers"] },
    });
    let provider = Provider::start_at("/oauth2/default", &company.callback(), claims).await;
    let config = json!({
        "org_url": provider.origin(), "authorization_server": "default",
        "scopes": ["openid", "profile", "email", "groups"], "group_roles": { "Engineers": "developer" },
    });
    let connection = company.connect("okta", config).await;
    let (browser, page) = company.sign_in(&connection, "00u1").await;
    assert_eq!(page.url.path(), "/canvas", "{page:?}");
    assert_eq!(company.roles(&browser).await, ["developer"]);
    let (browser, page) = company.sign_in(&connection, "00u2").await;
    assert_ne!(page.url.path(), "/canvas", "{page:?}");
    assert_eq!(company.me(&browser).await.status, 401);
    company.no_secret_in_the_log(&[]);

    let bad = json!({
        "name": "admin", "plugin": "okta", "secrets": { "client-secret": CLIENT_SECRET },
        "config": { "org_url": "https://acme-admin.okta.com", "client_id": CLIENT_ID },
    });
    let refused = company.tenant.owner.post("/api/v1/identity-connections", bad).await;
    if refused.status == 201 {
        let check = format!("/api/v1/identity-connections/{}/check", id(&refused.body));
        let checked = company.tenant.owner.post(&check, json!({})).await;
        assert!([422, 502].contains(&checked.status) && checked.text.contains("-admin"), "{}", checked.text);
    } else {
        assert!(refused.status == 422 && refused.text.contains("-admin"), "{}", refused.text);
    }
}

async fn github_signs_in_by_the_verified_address_with_organizations_as_groups(backend: Backend) {
    let company = Company::start(backend).await;
    let octocat = |emails: Value, organizations: &[&str]| {
        let orgs: Vec<Value> = organizations.iter().map(|login| json!({ "login": login })).collect();
        json!({ "id": 583_231, "login": "octocat", "name": "The Octocat", "emails": emails, "orgs": orgs })
    };
    let address = |verified: bool| {
        json!([
            { "email": "old@elsewhere.test", "primary": false, "verified": true, "visibility": null },
            { "email": "octo@acme.test", "primary": true, "verified": verified, "visibility": "private" },
        ])
    };
    let github = OAuth2::start(octocat(address(true), &["elsewhere", "acme"])).await;
    let config = json!({
        "url": github.url, "organizations": ["acme"], "group_roles": { "acme": "developer" },
        "default_role": "viewer",
    });
    let connection = company.connect("github", config).await;
    let (browser, page) = company.sign_in(&connection, "").await;
    assert_eq!(page.url.path(), "/canvas", "{page:?}");
    let authorize = page.way.iter().find(|url| url.path() == "/login/oauth/authorize").expect("GitHub's own page");
    let query: std::collections::BTreeMap<_, _> = Url::query_pairs(authorize).into_owned().collect();
    assert_eq!(query["scope"], "read:user user:email read:org");
    assert!(query["state"].len() >= 16 && query.contains_key("code_challenge"), "{authorize}");
    let me = company.me(&browser).await.ok(200);
    assert_eq!(me["user"]["email"], "octo@acme.test", "{me}");
    assert_eq!(company.roles(&browser).await, ["developer"], "by an organization on the second page");

    // The account's number counts, not its name: the same number under another name is the same person.
    let mut renamed = octocat(address(true), &["acme"]);
    renamed["login"] = "hubot".into();
    github.person(renamed);
    let (again, _) = company.sign_in(&connection, "").await;
    assert_eq!(company.me(&again).await.ok(200)["user"]["id"], me["user"]["id"]);

    let mut stranger = octocat(address(true), &["elsewhere"]);
    stranger["id"] = 7.into();
    let mut unverified = octocat(address(false), &["acme"]);
    unverified["id"] = 8.into();
    for other in [stranger, unverified] {
        github.person(other.clone());
        let (browser, page) = company.sign_in(&connection, "").await;
        assert_ne!(page.url.path(), "/canvas", "{other}: {page:?}");
        assert_eq!(company.me(&browser).await.status, 401);
    }
    company.no_secret_in_the_log(&github.secrets());
}
