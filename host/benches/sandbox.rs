//! One plugin call on a fresh instance, beside bare wasmtime with the same guest and the same arguments in the same run:
//! the price of limits, grants, secrets, logs and metrics; the same for up to 64 calls at once. What a thousand connections of
//! one plugin cost in memory. And the start: all bundled plugins, and the whole server.
#![expect(clippy::unwrap_used, reason = "criterion's macros; a benchmark may panic")]

use std::{collections::BTreeMap, sync::Arc};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kaizen::{
    app::App,
    clock::Clock,
    domain::connection::Kind,
    plugins::{Attempt, Binding, IdentityGrant, Plugins, Wanted, bundled},
    sandbox::{
        Sandbox,
        bindings::{
            common::kaizen::plugin::{log, secrets, types},
            identity_provider::{IdentityProviderPre, exports::kaizen::identity_provider::provider},
        },
        cache::Cache,
        egress::{Client, Policy, SystemResolver},
        limits::Bounds,
    },
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinSet};
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

/// As many calls of one plugin at once as all plugins together may have.
fn bounds() -> Bounds {
    Bounds { calls: 64, calls_per_plugin: 64, ..Bounds::default() }
}

async fn load(folder: &std::path::Path) -> Plugins {
    let policy = Policy::default();
    let egress = Client::new(policy, Arc::new(SystemResolver::default()));
    let cache = Cache::new(folder.to_path_buf(), &[1; 32]);
    let sandbox = Sandbox::within(bounds(), cache, egress, Clock::system()).unwrap();
    Plugins::within(sandbox, bundled().collect(), BTreeMap::new()).await.unwrap()
}

fn binding(connection: u128) -> Binding {
    let (connection_id, plugin) = (uuid::Uuid::from_u128(connection), "oidc".into());
    let organization_id = connection_id.into();
    let (wanted, config, secrets) = (Wanted::default(), config(), BTreeMap::new());
    Binding { organization_id, connection_id, plugin, wanted, config, secrets }
}

async fn call(plugins: &Plugins, binding: &Binding) {
    let attempt = Attempt { idempotency_key: "k".into(), attempt: 1 };
    let grant = IdentityGrant { claims: Some(claims()), userinfo: None };
    plugins.identify(binding, &attempt, grant, None).await.unwrap();
}

fn oidc() -> &'static [u8] {
    bundled().find(|(kind, name, _)| (*kind, *name) == (Kind::IdentityProvider, "oidc")).unwrap().2
}

fn calls(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let plugins = runtime.block_on(load(folder.path()));
    let (engine, pre) = bare(oidc());
    let one = binding(0);

    let mut group = c.benchmark_group("oidc identify, fresh instance");
    group.bench_function("bare wasmtime", |b| b.to_async(&runtime).iter(|| call_bare(&engine, &pre)));
    group.bench_function("kaizen", |b| b.to_async(&runtime).iter(|| call(&plugins, &one)));
    group.finish();

    let mut group = c.benchmark_group("oidc identify, calls at once");
    for at_once in [1, 2, 4, 8, 16, 32, 64_u32] {
        group.throughput(Throughput::Elements(at_once.into()));
        group.bench_function(BenchmarkId::new("bare wasmtime", at_once), |b| {
            b.to_async(&runtime).iter(|| async {
                let mut calls = JoinSet::new();
                for _ in 0..at_once {
                    let (engine, pre) = (engine.clone(), pre.clone());
                    calls.spawn(async move { call_bare(&engine, &pre).await });
                }
                calls.join_all().await
            });
        });
        group.bench_function(BenchmarkId::new("kaizen", at_once), |b| {
            b.to_async(&runtime).iter(|| async {
                let mut calls = JoinSet::new();
                for number in 0..at_once {
                    // Each of a connection of its own, or they would wait for each other.
                    let (plugins, binding) = (plugins.clone(), binding(number.into()));
                    calls.spawn(async move { call(&plugins, &binding).await });
                }
                calls.join_all().await
            });
        });
    }
    group.finish();
}

/// Memory of this process, in KiB.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4
}

/// Not a matter of time: printed.
fn memory(_: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let plugins = load(folder.path()).await;
        let thousand = async |connections: u128| {
            for number in 0..1000 {
                call(&plugins, &binding(number % connections)).await;
            }
            resident()
        };
        thousand(1).await;
        let one = thousand(1).await;
        let many = thousand(1000).await;
        eprintln!(
            "memory after 1,000 calls of 1 connection: {one} KiB; after 1,000 more of 1,000 connections: {many} KiB, \
             {:.2} KiB more for each",
            many.saturating_sub(one) as f64 / 999.0
        );
    });
}

fn start(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut group = c.benchmark_group("start");
    group.sample_size(10);
    runtime.block_on(load(folder.path()));
    group.bench_function("all bundled plugins, compiled before", |b| b.to_async(&runtime).iter(|| load(folder.path())));
    let data = tempfile::tempdir().unwrap();
    let set = [("data_dir".to_owned(), data.path().display().to_string())];
    let config = kaizen::config::Config::load(None, [], set).unwrap();
    // Keys, database and compiled plugins are made the first time.
    runtime.block_on(App::build(config.clone(), Clock::system())).unwrap();
    group.bench_function("the whole server, on data that is there", |b| {
        b.to_async(&runtime).iter(|| App::build(config.clone(), Clock::system()));
    });
    group.finish();
}

criterion_group!(benches, calls, memory, start);
criterion_main!(benches);
