//! One plugin call on a fresh instance, beside bare wasmtime with the same guest and the same arguments in the same run:
//! the price of limits, grants, secrets, logs and metrics. And loading all bundled plugins, as at a start of the server.
#![expect(clippy::unwrap_used, reason = "criterion's macros; a benchmark may panic")]

use std::{collections::BTreeMap, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use kaizen::{
    domain::connection::Kind,
    plugins::{Attempt, Binding, IdentityGrant, Plugins, Wanted, bundled},
    sandbox::{
        bindings::{
            common::kaizen::plugin::{log, secrets, types},
            identity_provider::{IdentityProviderPre, exports::kaizen::identity_provider::provider},
        },
        cache::Cache,
        egress::{Client, Policy, SystemResolver},
    },
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, Store,
    component::{Component, HasSelf, Linker, ResourceTable},
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

fn config() -> Value {
    json!({ "issuer": "https://login.example.com", "client_id": "kaizen" })
}

fn claims() -> Value {
    json!({
        "iss": "https://login.example.com", "sub": "248289761001", "aud": "kaizen", "email": "ada@example.com",
        "email_verified": true, "name": "Ada Lovelace", "groups": ["engineering", "analysts", "everyone"],
    })
}

/// The least that wasmtime needs to run the same guest.
struct Bare {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: NoRequests,
    table: ResourceTable,
}

struct NoRequests;

type Sent = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>);

impl WasiHttpHooks for NoRequests {
    fn send_request(
        &mut self,
        _: http::Request<WasiBody>,
        _: Option<wasmtime_wasi_http::RequestOptions>,
        _: Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent, wasmtime_wasi_http::Error>> + Send> {
        Box::new(async { Err(wasmtime_wasi_http::Error::HttpRequestDenied) })
    }
}

impl WasiView for Bare {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Bare {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

impl types::Host for Bare {}

impl log::Host for Bare {
    fn write(&mut self, _: log::Level, _: String) {}
}

impl secrets::Host for Bare {
    fn reveal(&mut self, _: String) -> Result<String, String> {
        Err(String::new())
    }
}

fn bare(wasm: &[u8]) -> (Engine, IdentityProviderPre<Bare>) {
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::pooling());
    let engine = Engine::new(&config).unwrap();
    let component = Component::from_binary(&engine, wasm).unwrap();
    let mut linker = Linker::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker).unwrap();
    log::add_to_linker::<_, HasSelf<Bare>>(&mut linker, |state| state).unwrap();
    secrets::add_to_linker::<_, HasSelf<Bare>>(&mut linker, |state| state).unwrap();
    let pre = IdentityProviderPre::new(linker.instantiate_pre(&component).unwrap()).unwrap();
    (engine, pre)
}

async fn call_bare(engine: &Engine, pre: &IdentityProviderPre<Bare>) -> provider::Identity {
    let state = Bare {
        wasi: WasiCtx::builder().build(),
        http: WasiHttpCtx::new(),
        hooks: NoRequests,
        table: ResourceTable::new(),
    };
    let mut store = Store::new(engine, state);
    let call = types::Call {
        connection_id: uuid::Uuid::nil().to_string(),
        config: config().to_string(),
        idempotency_key: "k".into(),
        attempt: 1,
    };
    let grant = provider::Grant { claims: Some(claims().to_string()), userinfo: None };
    let instance = pre.instantiate_async(&mut store).await.unwrap();
    instance.kaizen_identity_provider_provider().call_identify(&mut store, &call, &grant).await.unwrap().unwrap()
}

async fn load(folder: &std::path::Path) -> Plugins {
    let policy = Policy { allow: vec![], allow_private: vec![] };
    let egress = Client::new(policy, Arc::new(SystemResolver));
    let cache = Cache::new(folder.to_path_buf(), &[1; 32]);
    Plugins::install(bundled().collect(), cache, egress, BTreeMap::new()).await.unwrap()
}

fn calls(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let plugins = runtime.block_on(load(folder.path()));
    let binding = Binding {
        connection_id: uuid::Uuid::nil(),
        plugin: "oidc".into(),
        wanted: Wanted::default(),
        config: config(),
        secrets: BTreeMap::new(),
    };
    let attempt = Attempt { idempotency_key: "k".into(), attempt: 1 };
    let wasm = bundled().find(|(kind, name, _)| (*kind, *name) == (Kind::IdentityProvider, "oidc")).unwrap().2;
    let (engine, pre) = bare(wasm);

    let mut group = c.benchmark_group("oidc identify, fresh instance");
    group.bench_function("bare wasmtime", |b| b.to_async(&runtime).iter(|| call_bare(&engine, &pre)));
    group.bench_function("kaizen", |b| {
        b.to_async(&runtime).iter(|| async {
            let grant = IdentityGrant { claims: Some(claims()), userinfo: None };
            plugins.identify(&binding, &attempt, grant, None).await.unwrap()
        });
    });
    group.finish();

    let mut group = c.benchmark_group("all bundled plugins");
    group.sample_size(10);
    group.bench_function("load, compiled before", |b| b.to_async(&runtime).iter(|| load(folder.path())));
    group.finish();
}

criterion_group!(benches, calls);
criterion_main!(benches);
