//! Write a plugin for Kaizen Studio in Rust.
//!
//! A plugin is a WebAssembly component that the server runs in a sandbox. There are three kinds; implement one trait
//! and call one macro:
//!
//! | kind | trait | macro | what it does |
//! |---|---|---|---|
//! | identity provider | [`IdentityProvider`] | [`identity_provider!`] | says who signs people in, and who they are |
//! | deployment target | [`DeploymentTarget`] | [`deployment_target!`] | deploys agents somewhere |
//! | audit sink | [`AuditSink`] | [`audit_sink!`] | takes audit events away |
//!
//! # A plugin from nothing
//! `Cargo.toml`:
//! ```toml
//! [lib]
//! crate-type = ["cdylib"]
//!
//! [dependencies]
//! kaizen-plugin = { path = "../sdk" }
//! serde = { version = "1", features = ["derive"] }
//!
//! [profile.release]
//! opt-level = "s"
//! lto = true
//! strip = true
//! panic = "abort"
//! ```
//! `src/lib.rs`:
//! ```
//! use kaizen_plugin::http::Request;
//! use kaizen_plugin::schemars::{self, JsonSchema};
//! use kaizen_plugin::sink::Event;
//! use kaizen_plugin::{AuditSink, Call, Capability, Manifest, Plugin, Result, Secret, SecretSlot, Url, log};
//!
//! /// Where events go. Field names, types, documentation and attributes become the form people fill in.
//! #[derive(serde::Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! #[schemars(crate = "schemars")]
//! pub struct Config {
//!     /// The collector's address, e.g. `https://logs.example.com/intake`.
//!     url: Url,
//!     /// The channel to write to.
//!     #[serde(default = "main_channel")]
//!     channel: String,
//! }
//!
//! fn main_channel() -> String {
//!     "main".to_owned()
//! }
//!
//! struct Collector;
//!
//! impl Plugin for Collector {
//!     type Config = Config;
//!     const MANIFEST: Manifest = Manifest {
//!         name: "collector",
//!         version: "1.0.0",
//!         title: "Our collector",
//!         description: "Sends audit events to the collector of our own.",
//!         // The connection supplies this secret. The server puts it into requests to `url`'s host and to no other.
//!         secrets: &[SecretSlot { name: "token", description: "An intake token", hosts: &["{config.url}"] }],
//!         // The only host this plugin may speak to.
//!         capabilities: &[Capability::Http("{config.url}")],
//!     };
//! }
//!
//! impl AuditSink for Collector {
//!     fn check(call: &Call<Config>) -> Result<String> {
//!         send(call, &[])?;
//!         Ok(format!("{} takes events", call.config.url.host()))
//!     }
//!
//!     fn deliver(call: &Call<Config>, events: &[Event]) -> Result<u32> {
//!         send(call, events)?;
//!         log::info!("{} events delivered", events.len());
//!         Ok(u32::try_from(events.len()).unwrap_or(u32::MAX))
//!     }
//! }
//!
//! fn send(call: &Call<Config>, events: &[Event]) -> Result<()> {
//!     Request::post(&call.config.url)
//!         .header("x-channel", &call.config.channel)
//!         .header("authorization", Secret::named("token").bearer())
//!         .json(&events)?
//!         .send()?
//!         .success()?; // 401 is for the operator, 503 is worth another attempt: the error knows
//!     Ok(())
//! }
//!
//! kaizen_plugin::audit_sink!(Collector);
//!
//! // Its unit test runs on your machine, with an answer of your own:
//! # /*
//! #[test]
//! # */
//! fn an_expired_token_is_for_the_operator_to_fix() {
//!     let far_side = kaizen_plugin::testing::answer(|request| {
//!         assert_eq!(request.header("authorization"), Some("Bearer {{secret:token}}"));
//!         Ok(kaizen_plugin::http::Response::new(401, "token expired"))
//!     });
//!     let call = kaizen_plugin::testing::call::<Collector>(r#"{"url": "https://logs.example.com/intake"}"#);
//!     assert!(matches!(Collector::deliver(&call, &[]), Err(kaizen_plugin::Error::Config(_))));
//!     assert_eq!(far_side.requests().len(), 1);
//! }
//! # an_expired_token_is_for_the_operator_to_fix();
//! ```
//! `rustup target add wasm32-wasip2` once, then `cargo build --release --target wasm32-wasip2`: the `.wasm` file in
//! `target/wasm32-wasip2/release/` is the plugin. No other tool is needed.
//!
//! # What a call is
//! The server makes a fresh instance for every call and drops it afterwards. Nothing kept in memory survives, no other
//! call is visible, and functions simply block. Memory, time, requests and log lines are limited; a panic or a limit
//! ends this call and nothing else. The server may call again with the same work: [`Call::idempotency_key`] is then the
//! same, so hand it to the far side.
//!
//! # What a plugin can reach
//! Nothing that its [`Manifest`] doesn't ask for and the operator doesn't grant. There is no network without
//! [`Capability::Http`], and then only the hosts named; `{config.NAME}` stands for the connection's own setting, so a
//! plugin reaches what *its* connection names. Private and loopback addresses are refused unless the operator lists
//! them. Files need [`Capability::Directory`]; the folder is then at `/NAME`, for `std::fs`.
//!
//! # Secrets
//! A plugin uses secrets without seeing them: [`Secret`] gives a placeholder for a request header, and the server
//! replaces it on the way out, only towards the hosts of the [`SecretSlot`]. A plugin that must compute with a secret
//! (a signature) asks for [`Capability::RevealSecret`] and calls [`Secret::reveal`].
//!
//! # Errors
//! [`Error`] decides what happens next: [`Error::Unavailable`] is tried again, after its `retry_after`; the other three
//! are not. [`http::Response::success`] and the `?` after [`http::Request::send`] choose for you.

#[doc(hidden)]
pub mod bindings;
mod call;
mod error;
pub mod http;
pub mod identity;
mod logging;
#[doc(hidden)]
pub mod manifest;
mod progress;
mod secret;
pub mod signature;
pub mod sink;
pub mod target;
pub mod tcp;
#[cfg(not(target_os = "wasi"))]
pub mod testing;
mod url;

pub use call::Call;
pub use error::{Error, Result};
pub use identity::IdentityProvider;
pub use manifest::{Capability, Manifest, Plugin, SecretSlot};
pub use progress::progress;
pub use secret::{Revealed, Secret};
pub use sink::AuditSink;
pub use target::DeploymentTarget;
pub use url::{Url, UrlError};

/// The `log` crate: `debug!`, `info!`, `warn!` and `error!` write to the server's log, with the plugin and connection
/// named.
pub use log;
/// The `schemars` crate, for `#[derive(JsonSchema)]`; name it with `#[schemars(crate = "schemars")]` after importing
/// it.
pub use schemars;
pub use serde_json;
