//! A server with tenants in it: what most tests begin with.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Backend, Client, Gateway, Server, Setup};

/// Everyone's password.
pub const PASSWORD: &str = "violet harbour turnip lantern";

/// A running server and what it was started with.
pub struct World {
    pub server: Server,
    pub setup: Arc<Setup>,
}

/// An organization with its owner.
pub struct Tenant {
    pub id: String,
    pub owner: Person,
}

/// Someone who is signed in.
#[derive(Clone)]
pub struct Person {
    pub id: String,
    pub email: String,
    pub client: Client,
}

impl std::ops::Deref for Person {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl World {
    /// A server of its own on a fresh database.
    pub async fn start(backend: Backend) -> Self {
        Self::with(Setup::new(backend).await).await
    }

    pub async fn with(setup: Setup) -> Self {
        let setup = Arc::new(setup);
        Self { server: setup.start().await, setup }
    }

    /// Nobody, at this server.
    pub fn client(&self) -> Client {
        Client::new(&self.server.url)
    }

    /// A new organization, by the command of the operator's.
    pub async fn tenant(&self, name: &str) -> Tenant {
        self.organization(name, &[]).await
    }

    /// The operator's own organization: its owner is a platform administrator.
    pub async fn operator(&self) -> Tenant {
        self.organization("operator", &["--platform-administrator"]).await
    }

    async fn organization(&self, name: &str, flags: &[&str]) -> Tenant {
        let email = format!("owner@{name}.test");
        let mut args = vec!["admin", "create-organization", "--name", name, "--owner", &email, "--password-stdin"];
        args.extend_from_slice(flags);
        let made = self.setup.run(&args, &format!("{PASSWORD}\n")).await.json();
        let text = |name: &str| made[name].as_str().unwrap_or_else(|| panic!("{name}: {made}")).to_owned();
        let client = self.client().login(&email, PASSWORD).await;
        Tenant { id: text("organization_id"), owner: Person { id: text("user_id"), email, client } }
    }

    /// The same server's data after [`Server::kill`] or [`Server::stop`]: clients have to be pointed at it.
    pub async fn again(&mut self) {
        self.server = self.setup.start().await;
    }
}

impl Tenant {
    /// Someone with a role in the whole organization, signed in.
    pub async fn person(&self, name: &str, role: &str) -> Person {
        let person = self.stranger(name).await;
        self.grant(&person, role, None).await;
        person
    }

    /// Someone who belongs to the organization and has no role in it, signed in.
    pub async fn stranger(&self, name: &str) -> Person {
        let domain = self.owner.email.split_once('@').expect("an address").1;
        let email = format!("{name}@{domain}");
        let user =
            self.owner.create("/api/v1/users", json!({ "email": email, "name": name, "password": PASSWORD })).await;
        let nobody = Client { request_id: self.owner.request_id.clone(), ..Client::new(&self.owner.base) };
        let client = nobody.login(&email, PASSWORD).await;
        Person { id: id(&user), email, client }
    }

    /// Gives a role, in the whole organization or in one workspace; returns the membership's id.
    pub async fn grant(&self, person: &Person, role: &str, workspace: Option<&str>) -> String {
        let mut body = json!({ "user_id": person.id, "role": role });
        if let Some(workspace) = workspace {
            body["workspace_id"] = workspace.into();
        }
        id(&self.owner.create("/api/v1/memberships", body).await)
    }

    pub async fn workspace(&self, name: &str) -> String {
        id(&self.owner.create("/api/v1/workspaces", json!({ "name": name })).await)
    }

    /// An agent in this workspace, by the owner.
    pub async fn agent(&self, workspace: &str, name: &str) -> Value {
        self.owner.create("/api/v1/agents", agent(workspace, name)).await
    }

    /// The API's record of this gateway; returns its id.
    pub async fn gateway(&self, gateway: &Gateway, name: &str) -> String {
        id(&self.owner.create("/api/v1/gateways", gateway.body(name)).await)
    }
}

/// The body that creates an agent.
pub fn agent(workspace: &str, name: &str) -> Value {
    json!({
        "name": name,
        "workspace_id": workspace,
        "description": "Answers tickets.",
        "labels": { "team": "support" },
        "settings": { "system_prompt": "Be kind.", "model": "large", "temperature": 0.2, "max_tokens": 1000 },
    })
}

/// The `id` of something the API returned.
#[track_caller]
pub fn id(of: &Value) -> String {
    of["id"].as_str().unwrap_or_else(|| panic!("no id: {of}")).to_owned()
}
