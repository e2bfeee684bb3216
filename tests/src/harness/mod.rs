//! What the tests are written with: servers of ours, stand-ins for the far sides, and clients.

mod balancer;
mod canvas;
mod chameleon;
mod client;
mod cluster;
mod contract;
mod database;
mod gateway;
mod issuer;
mod kubernetes;
mod oauth2;
mod oidc;
mod rsyslog;
mod server;
mod splunk;
mod sse;
mod stub;
mod tcp;
mod wait;
mod world;

pub use balancer::Balancer;
pub use canvas::{Canvas, node};
pub use chameleon::Chameleon;
pub use client::{Answer, Client, Headers};
pub use cluster::Cluster;
pub use database::{Backend, Database, Direct};
pub use gateway::{Gateway, KEY};
pub use issuer::{Issuer, Trouble};
pub use kubernetes::{CLUSTER_TOKEN, Kubernetes, NAMESPACE};
pub use oauth2::{Exchange, OAuth2};
pub use oidc::{Browser, CLIENT_ID, CLIENT_SECRET, Page, Provider};
pub use rsyslog::Rsyslog;
pub use server::{MASTER_KEY, Server, Setup, binary};
pub use splunk::{HEC_TOKEN, Splunk};
pub use sse::{Event, Events};
pub use stub::{Reply, Seen, Stub};
pub use tcp::{Proxy, Redis, free_port};
pub use wait::{eventually, within};
pub use world::{PASSWORD, Person, Tenant, World, agent, id};

/// An id that nothing has.
#[expect(clippy::disallowed_methods, reason = "the tests have no `Clock`")]
pub fn fresh_id() -> uuid::Uuid {
    uuid::Uuid::now_v7()
}
