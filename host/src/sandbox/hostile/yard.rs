//! Where the hostile guests run: a sandbox whose only way out leads to a far side in this process.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use secrecy::SecretString;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wasmtime::{
    Store,
    component::{ComponentNamedList, Lift, Linker},
};

use crate::{
    clock::Clock,
    sandbox::{
        Fault, Guest, Sandbox,
        cache::Cache,
        context::Context,
        egress::{Asking, Client, Connect, EgressError, LookupBounds, Lookups, Policy, Resolve, Stream},
        grants::{Capability, Grants, SecretSlot, Template},
        guest::Manifest,
        limits::{Bounds, Limits, LogRate},
        pattern::Target,
        scheduler::Caller,
        secret::Vault,
        state::State,
    },
};

/// The folder of the guests.
const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/guests");

/// A guest that is written as text.
pub(super) fn wat(name: &str) -> Vec<u8> {
    let path = format!("{GUESTS}/wat/{name}.wat");
    wat::parse_file(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A guest that is written in Rust. All are built at once, where that is not done already.
pub(super) fn rust(name: &str) -> Vec<u8> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        // Beside `<target>/plugins`, where the build script of this crate builds the bundled plugins.
        let target = Path::new(env!("OUT_DIR")).ancestors().nth(4).unwrap().join("guests");
        let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
        cargo.current_dir(GUESTS).args(["build", "--release", "--locked", "--target", "wasm32-wasip2", "--target-dir"]);
        cargo.arg(&target);
        // What is meant for the build of this test is not meant for that one.
        let kept = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "RUSTUP_"];
        for (variable, _) in std::env::vars_os() {
            let variable = variable.to_string_lossy();
            if (variable.starts_with("CARGO") || variable.starts_with("RUST"))
                && !kept.iter().any(|kept| variable.starts_with(kept))
            {
                cargo.env_remove(&*variable);
            }
        }
        let output = cargo.output().unwrap();
        assert!(output.status.success(), "the guests don't build:\n{}", String::from_utf8_lossy(&output.stderr));
        target.join("wasm32-wasip2/release")
    });
    let path = built.join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The whole network, as the guests see it: names resolve as they are told to, those of domains called `slow…` never, and
/// connections lead here.
pub(super) struct FarSide {
    /// As the machine's own names are looked up: on threads that nothing can end.
    lookups: Arc<Lookups>,
    /// Gone with this: then what still looks a name up gives up.
    alive: Arc<()>,
    names: Mutex<VecDeque<Vec<IpAddr>>>,
    answer: Box<dyn Fn(&str) -> String + Send + Sync>,
    /// Where to, by which addresses.
    pub(super) connections: Mutex<Vec<(String, Vec<IpAddr>)>>,
    /// As they came, whole.
    pub(super) requests: Arc<Mutex<Vec<String>>>,
}

/// Names that are looked up at once.
const LOOKUP_BOUNDS: LookupBounds = LookupBounds { at_once: 12, for_sign_in: 2, per_organization: 6, per_domain: 4 };

impl FarSide {
    /// Names that are being looked up.
    pub(super) fn lookups(&self) -> usize {
        LOOKUP_BOUNDS.at_once - self.lookups.free()
    }
}

/// What names resolve to otherwise: an address on the internet, so that nothing else refuses it.
const PUBLIC: [u8; 4] = [93, 184, 215, 14];

#[async_trait]
impl Resolve for FarSide {
    async fn resolve(&self, name: &str, asking: Asking) -> io::Result<Vec<IpAddr>> {
        let told = self.names.lock().pop_front().unwrap_or_else(|| vec![IpAddr::from(PUBLIC)]);
        let alive = Arc::downgrade(&self.alive);
        let look = move |name: &str| {
            while name.contains(".slow") && alive.strong_count() > 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(told)
        };
        self.lookups.resolve(name, asking, look).await
    }
}

#[async_trait]
impl Connect for FarSide {
    async fn connect(&self, target: &Target, addresses: &[IpAddr]) -> Result<Box<dyn Stream>, EgressError> {
        self.connections.lock().push((target.to_string(), addresses.to_vec()));
        let (ours, mut far) = tokio::io::duplex(64 << 10);
        let (requests, answer) = (self.requests.clone(), (self.answer)(&target.to_string()));
        tokio::spawn(async move {
            let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match far.read(&mut buffer).await {
                    Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
                    _ => break,
                }
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let answer = answer.replace("{request}", &request);
            requests.lock().push(request);
            if answer == "drip" {
                let mut next: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
                while far.write_all(next).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    next = b" ";
                }
                return;
            }
            if answer == "silent" || answer == "halts" {
                let head: &[u8] = if answer == "halts" { b"HTTP/1.1 200 OK\r\n\r\nbegun" } else { b"" };
                far.write_all(head).await.ok();
                // Until the other side has enough of it.
                tokio::io::copy(&mut far, &mut tokio::io::sink()).await.ok();
                return;
            }
            let answer = match answer.strip_prefix("302 ") {
                Some(location) => format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"),
                None => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len()),
            };
            far.write_all(answer.as_bytes()).await.ok();
            far.shutdown().await.ok();
        });
        Ok(Box::new(ours))
    }
}

/// A sandbox and what is around it.
pub(super) struct Yard {
    pub(super) sandbox: Sandbox,
    pub(super) far: Arc<FarSide>,
    pub(super) clock: Clock,
    /// Offered as `audit`.
    pub(super) folder: tempfile::TempDir,
}

/// What came of a guest in Rust: how it ended, what it printed, what it was refused.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) ended: Result<(), Fault>,
    pub(super) printed: String,
    pub(super) denials: Vec<String>,
    pub(super) refused: u32,
    pub(super) cpu: Duration,
    /// It went on in the background.
    pub(super) moved: bool,
}

impl Yard {
    pub(super) fn new() -> Self {
        Self::with(Bounds::default(), |_| "hello".to_owned())
    }

    /// With these limits; the far side answers `302 ADDRESS` with a redirect, `drip` with what never ends, `silent` not at all, `halts` with a beginning, and `{request}` with
    /// what it was sent.
    pub(super) fn with(bounds: Bounds, answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let far = Arc::new(FarSide {
            lookups: Arc::new(Lookups::new(LOOKUP_BOUNDS)),
            alive: Arc::default(),
            names: Mutex::default(),
            answer: Box::new(answer),
            connections: Mutex::default(),
            requests: Arc::default(),
        });
        let policy = Policy { allow: vec!["*".parse().unwrap()], ..Policy::default() };
        // Shared by all tests of this machine, so that each guest is compiled once.
        let cache = Cache::new(std::env::temp_dir().join("kaizen-test-compiled"), &[9; 32]);
        let clock = Clock::fixed("2026-01-02T03:04:05Z".parse().unwrap(), 1);
        let egress = Client::through(policy, far.clone(), far.clone());
        let sandbox = Sandbox::within(bounds, cache, egress, clock.clone()).unwrap();
        Self { sandbox, far, clock, folder: tempfile::tempdir().unwrap() }
    }

    /// The next answers of the name server, in turn.
    pub(super) fn names(&self, answers: &[&[&str]]) {
        let parsed = answers.iter().map(|list| list.iter().map(|address| address.parse().unwrap()).collect());
        self.far.names.lock().extend(parsed);
    }

    pub(super) fn guest(&self, wasm: &[u8]) -> Guest {
        self.linked(wasm, &self.sandbox.http)
    }

    /// A guest that is linked as for `describe`.
    pub(super) fn described(&self, wasm: &[u8]) -> Guest {
        self.linked(wasm, &self.sandbox.described)
    }

    fn linked(&self, wasm: &[u8], linker: &Linker<State>) -> Guest {
        let component = self.sandbox.compile(wasm).unwrap();
        Guest {
            pre: linker.instantiate_pre(&component).unwrap(),
            manifest: Arc::new(Manifest {
                name: "bad".into(),
                version: "1.0.0".into(),
                title: "Bad".into(),
                description: String::new(),
                config_schema: "{}".into(),
                secrets: vec![],
                capabilities: vec![],
            }),
        }
    }

    /// A call that may do nothing.
    pub(super) fn context(&self, limits: Limits) -> Context {
        self.granted(limits, Grants::default(), &[])
    }

    fn granted(&self, limits: Limits, grants: Grants, secrets: &[(&str, &str)]) -> Context {
        let secrets = secrets.iter().map(|(name, value)| ((*name).to_owned(), SecretString::from(*value))).collect();
        let vault = Vault::new(&grants, &secrets);
        let lines = Arc::new(LogRate::new(3, self.clock.clone()));
        self.sandbox.context("bad", "test".into(), grants, vault, limits, lines)
    }

    /// A call that may read its secret.
    pub(super) fn revealing(&self, secret: &str) -> Context {
        let slot = SecretSlot { name: "key".into(), description: String::new(), hosts: vec![] };
        let asked = [Capability::RevealSecret("key".into())];
        let grants = Grants::resolve(&asked, &[slot], &json!({}), &BTreeMap::new()).unwrap();
        self.granted(Limits::default(), grants, &[("key", secret)])
    }

    /// Calls `run` of a guest in text.
    pub(super) async fn run<R>(&self, guest: &Guest, limits: Limits) -> Result<R, Fault>
    where
        (R,): ComponentNamedList + Lift + Send + Sync + 'static,
        R: Send + Sync + 'static,
    {
        self.run_as(guest, self.context(limits).into()).await
    }

    pub(super) async fn run_as<R>(&self, guest: &Guest, context: Arc<Context>) -> Result<R, Fault>
    where
        (R,): ComponentNamedList + Lift + Send + Sync + 'static,
        R: Send + Sync + 'static,
    {
        let pre = guest.pre.clone();
        let body = |mut store: Store<State>| async move {
            let called = async {
                let instance = pre.instantiate_async(&mut store).await?;
                let run = instance.get_typed_func::<(), (R,)>(&mut store, "run")?;
                Ok(run.call_async(&mut store, ()).await?.0)
            };
            let called = called.await;
            (store, called)
        };
        self.sandbox.call(context, body).await
    }

    /// Runs `main` of a guest in Rust as [`Yard::main_asking`] does, for somebody.
    pub(super) async fn main_for(&self, guest: &Guest, limits: Limits, caller: Caller) -> Told {
        self.main_granted(guest, (limits, caller), &[Capability::Http(Template::http("http://*:*").unwrap())]).await
    }

    /// Runs `main` of a guest in Rust, which may send requests to every host, is given the folder, and has two secrets for
    /// `http://api.example`.
    pub(super) async fn main(&self, guest: &Guest, limits: Limits) -> Told {
        let http = Capability::Http(Template::http("http://*:*").unwrap());
        self.main_granted(guest, (limits, Caller::default()), &[http, Capability::Directory("audit".into())]).await
    }

    /// The same with nothing but HTTP.
    pub(super) async fn main_asking(&self, guest: &Guest, limits: Limits) -> Told {
        self.main_for(guest, limits, Caller::default()).await
    }

    /// The same with nothing but TCP.
    pub(super) async fn main_connecting(&self, guest: &Guest, limits: Limits) -> Told {
        let tcp = Capability::Tcp(Template::tcp("api.example:601").unwrap());
        self.main_granted(guest, (limits, Caller::default()), &[tcp]).await
    }

    async fn main_granted(
        &self,
        guest: &Guest,
        (limits, caller): (Limits, Caller),
        capabilities: &[Capability],
    ) -> Told {
        let api = || vec![Template::http("http://api.example").unwrap()];
        let slot = |name: &str| SecretSlot { name: name.into(), description: String::new(), hosts: api() };
        let folders = BTreeMap::from([("audit".to_owned(), self.folder.path().join("own"))]);
        let slots = [slot("token"), slot("broken")];
        let grants = Grants::resolve(capabilities, &slots, &json!({}), &folders).unwrap();
        let secrets = [("token", "s3cr3t-tok/en+1"), ("broken", "one\r\nevil: 1")];
        let mut context = self.granted(limits, grants, &secrets);
        context.caller = caller;
        let context = Arc::new(context);
        let pre = guest.pre.clone();
        let body = |mut store: Store<State>| async move {
            let called = async {
                let component = pre.component().clone();
                let kind = component.component_type();
                let name = {
                    let mut names = kind.exports(store.engine()).map(|(name, _)| name.to_owned());
                    names.find(|name| name.starts_with("wasi:cli/run@")).unwrap()
                };
                let instance = pre.instantiate_async(&mut store).await?;
                let interface = instance.get_export_index(&mut store, None, &name).unwrap();
                let run = instance.get_export_index(&mut store, Some(&interface), "run").unwrap();
                let run = instance.get_typed_func::<(), (Result<(), ()>,)>(&mut store, run)?;
                run.call_async(&mut store, ()).await?.0.map_err(|()| wasmtime::Error::msg("it failed"))
            };
            let called = called.await;
            (store, called)
        };
        let ended = self.sandbox.call(context.clone(), body).await;
        let (cpu, moved) = (context.usage.cpu(), context.usage.moved());
        Told { ended, printed: context.written(), denials: context.denials(), refused: context.refused(), cpu, moved }
    }
}

/// Limits that hostile guests meet soon.
pub(super) fn tight() -> Limits {
    Limits {
        cpu: Duration::from_millis(100),
        wall: Duration::from_secs(10),
        memory_bytes: 8 << 20,
        table_elements: 10_000,
        ..Limits::default()
    }
}
