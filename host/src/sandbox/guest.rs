//! A loaded component, and one call of it: a fresh instance, within limits, under grants.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use tokio::{sync::Semaphore, time::timeout};
use uuid::Uuid;
use wasmtime::{
    Engine, Store, Trap,
    component::{Component, InstancePre, Linker},
};

use super::{
    aside::Aside,
    bindings::{self, common},
    cache::Cache,
    context::Context,
    egress, engine,
    folders::Folders,
    grants::Grants,
    limits::{Bounds, Exceeded, Limits, LogRate, MemoryAccount},
    scheduler::{Caller, Scheduler},
    secret::Vault,
    state::{self, Shared, State},
};
use crate::clock::Clock;

/// The manifest as the component gave it.
pub use common::exports::kaizen::plugin::manifest::{Capability, Manifest, SecretSlot};

/// Why a component cannot be loaded: says what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bytes are no component, or one for something newer.
    #[error("not a WebAssembly component that this server can run: {0}")]
    Component(String),
    /// It imports what is not offered.
    #[error("it imports `{0}`, which this server does not offer")]
    Import(String),
    /// It imports HTTP without asking for it.
    #[error("it imports `{0}` but its manifest asks for no `http` capability: ask for the hosts it needs")]
    Http(String),
    /// It does not export what its kind must.
    #[error("it does not implement the interface of its kind: {0}")]
    World(String),
    /// `describe` failed.
    #[error("`describe` failed: {0}")]
    Describe(Fault),
}

/// Why a call ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A trap: a defect of the plugin.
    #[error("the plugin failed: {0}")]
    Trap(String),
    /// A limit.
    #[error("the plugin was stopped: {0}")]
    Limit(String),
    /// What was granted is not there.
    #[error("{0}")]
    Setup(String),
    /// The name of what was granted cannot be looked up just now, or its folder cannot be used.
    #[error("{0}")]
    Unreachable(String),
    /// Too many calls at once.
    #[error("too many calls of plugins at once")]
    Busy,
    /// Other calls have the memory: all together, or those of the same organization.
    #[error(
        "the memory of all plugin calls together (`plugin_memory_total_mib`), or of this organization's \
         (`plugin_memory_per_organization_mib`), is in use"
    )]
    MemoryInUse,
}

/// Loads and runs components.
#[derive(Clone)]
pub struct Sandbox {
    engine: Engine,
    cache: Arc<Cache>,
    /// Without and with `wasi:http`, and with one that does nothing.
    plain: Arc<Linker<State>>,
    pub(super) http: Arc<Linker<State>>,
    pub(super) described: Arc<Linker<State>>,
    egress: egress::Client,
    clock: Clock,
    bounds: Arc<Bounds>,
    scheduler: Scheduler,
    shared: Shared,
    aside: Arc<Aside>,
}

/// A component, linked and ready to be instantiated.
#[derive(Clone)]
pub struct Guest {
    /// Ready to be instantiated; the kind's own bindings wrap it.
    pub pre: InstancePre<State>,
    /// What it said of itself.
    pub manifest: Arc<Manifest>,
}

impl Sandbox {
    /// A sandbox with the default limits; see [`Sandbox::within`].
    ///
    /// # Errors
    /// If the machine cannot reserve the address space.
    pub fn new(cache: Cache, egress: egress::Client) -> wasmtime::Result<Self> {
        Self::within(Bounds::default(), cache, egress, Clock::system())
    }

    /// A sandbox within these limits, that keeps what it compiles in `cache`, and whose guests go out through `egress`.
    ///
    /// # Errors
    /// If the machine cannot reserve the address space.
    pub fn within(bounds: Bounds, cache: Cache, egress: egress::Client, clock: Clock) -> wasmtime::Result<Self> {
        let engine = engine::build(&bounds)?;
        let mut plain = Linker::new(&engine);
        state::add_to_linker(&mut plain)?;
        bindings::add_to_linker(&mut plain)?;
        let (mut http, mut described) = (plain.clone(), plain.clone());
        state::add_http_to_linker(&mut http)?;
        state::add_http_stub_to_linker(&mut described)?;
        let bounds = Arc::new(bounds);
        Ok(Self {
            engine,
            cache: Arc::new(cache),
            plain: Arc::new(plain),
            http: Arc::new(http),
            described: Arc::new(described),
            egress,
            clock,
            scheduler: Scheduler::new(bounds.clone()),
            shared: Shared {
                memory: MemoryAccount::new(bounds.memory_total_bytes, bounds.memory_per_organization_bytes),
                descriptors: Arc::new(Semaphore::new(bounds.descriptors_total.min(Semaphore::MAX_PERMITS))),
                folders: Arc::new(Folders::new(&bounds)?),
            },
            bounds,
            aside: Arc::new(Aside::new()?),
        })
    }

    /// The same engine and cache with another way out and another time of day: for tests of plugins.
    #[must_use]
    pub fn elsewhere(&self, egress: egress::Client, clock: Clock) -> Self {
        Self { egress, clock, ..self.clone() }
    }

    /// Whether these folders are there, or can be made for a call.
    ///
    /// # Errors
    /// [`Fault::Setup`] where their organization has too many already; [`Fault::Unreachable`] where the disk is in trouble.
    pub async fn permits_folders(
        &self,
        organization: Option<Uuid>,
        folders: Vec<(String, PathBuf)>,
    ) -> Result<(), Fault> {
        self.shared.folders.permit(organization, folders).await
    }

    /// The engine.
    #[cfg(test)]
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The operator's limits.
    pub fn bounds(&self) -> &Arc<Bounds> {
        &self.bounds
    }

    /// The time.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Compiles, or finds compiled before. Takes up to seconds: not for an async thread.
    ///
    /// # Errors
    /// [`LoadError::Component`].
    pub fn compile(&self, wasm: &[u8]) -> Result<Component, LoadError> {
        let wrong = |error: wasmtime::Error| LoadError::Component(first_line(&error));
        self.cache.component(&self.engine, wasm).map_err(wrong)
    }

    /// Removes what is kept compiled, but of the components of these digests. Blocks.
    ///
    /// # Errors
    /// As the file system says.
    pub fn keep_compiled(&self, digests: &BTreeSet<String>) -> std::io::Result<()> {
        self.cache.keep(&self.engine, digests)
    }

    /// Lets a component describe itself, with nothing granted, and links it for what it asks for.
    ///
    /// # Errors
    /// What is wrong with the component.
    pub async fn load(&self, name: &str, component: &Component) -> Result<Guest, LoadError> {
        let kind = component.component_type();
        let imports: Vec<&str> = kind.imports(&self.engine).map(|(name, _)| name).collect();
        if let Some(import) = imports.iter().find(|name| !name.starts_with("wasi:") && !name.starts_with("kaizen:")) {
            return Err(LoadError::Import((*import).to_owned()));
        }
        let manifest = self.describe(name, component).await?;
        let asks_http = manifest.capabilities.iter().any(|c| matches!(c, Capability::Http(_)));
        if let (false, Some(import)) = (asks_http, imports.iter().find(|name| name.starts_with("wasi:http/"))) {
            return Err(LoadError::Http((*import).to_owned()));
        }
        let linker = if asks_http { &self.http } else { &self.plain };
        let pre = linker.instantiate_pre(component).map_err(|error| LoadError::World(chain(&error)))?;
        Ok(Guest { pre, manifest: Arc::new(manifest) })
    }

    async fn describe(&self, name: &str, component: &Component) -> Result<Manifest, LoadError> {
        // It may import `wasi:http`, which it cannot use here: it is not known yet whether it asks for it.
        let pre = self.described.instantiate_pre(component).map_err(|error| LoadError::World(chain(&error)))?;
        let pre = common::DescribedPre::new(pre).map_err(|error| LoadError::World(chain(&error)))?;
        let grants = Grants::default();
        let vault = Vault::new(&grants, &Default::default());
        let lines = Arc::new(LogRate::new(self.bounds.log_lines_per_second, self.clock.clone()));
        let limits = self.bounds.call.describe();
        let mut context = self.context(name, "describe".into(), grants, vault, limits, lines);
        context.caller = Caller { plugin: format!("describe {name}"), signs_in: true, ..Caller::default() };
        self.call(Arc::new(context), |mut store| async move {
            let result = async {
                let instance = pre.instantiate_async(&mut store).await?;
                instance.kaizen_plugin_manifest().call_describe(&mut store).await
            };
            let result = result.await;
            (store, result)
        })
        .await
        .map_err(LoadError::Describe)
    }

    /// A context for a call under these grants; the way out is this sandbox's.
    pub fn context(
        &self,
        plugin: &str,
        connection: String,
        grants: Grants,
        vault: Vault,
        limits: Limits,
        lines: Arc<LogRate>,
    ) -> Context {
        Context::new(plugin.to_owned(), connection, grants, vault, limits, lines, self.egress.clone())
    }

    /// Runs one call, when there is a place for it. `body` instantiates and calls, and hands the store back.
    ///
    /// # Errors
    /// Where the call ends without a result.
    pub async fn call<R, F, Fut>(&self, context: Arc<Context>, body: F) -> Result<R, Fault>
    where
        F: FnOnce(Store<State>) -> Fut + Send + 'static,
        Fut: Future<Output = (Store<State>, wasmtime::Result<R>)> + Send + 'static,
        R: Send + 'static,
    {
        let waiting = self.scheduler.take(context.caller.clone());
        let Ok(Some(place)) = timeout(self.bounds.queue, waiting).await else { return Err(Fault::Busy) };
        let (wall, usage) = (context.limits.wall, context.usage.clone());
        let running = {
            let (engine, context, clock) = (self.engine.clone(), context.clone(), self.clock.clone());
            let shared = self.shared.clone();
            async move {
                let store = State::store(&engine, context.clone(), &clock, &shared).await?;
                let (store, result) = body(store).await;
                let result = result.map_err(|error| explain(&error, store.data(), &context));
                // The place in the pool is free before somebody else's call begins.
                drop(store);
                drop(place);
                result
            }
        };
        let disk = (!context.grants.directories().is_empty()).then(|| self.shared.folders.disk.threads());
        let result = match timeout(wall, self.aside.run(&usage, disk, running)).await {
            Ok(result) => result,
            Err(_) => Err(Fault::Limit(format!("it took longer than {} s", wall.as_secs_f32()))),
        };
        context.finish().await;
        result
    }
}

/// Why a call trapped, in words: the limit behind it where there is one.
fn explain(error: &wasmtime::Error, state: &State, context: &Context) -> Fault {
    let limits = &context.limits;
    match (state.limiter.exceeded, error.downcast_ref::<Trap>()) {
        // Whatever it met next: it was to end by this.
        _ if context.refused_too_often() => {
            let last = context.denials().pop().unwrap_or_default();
            Fault::Limit(format!("it was refused something more than {} times, e.g. {last}", limits.refusals))
        }
        (Some(Exceeded::Cpu), _) | (_, Some(Trap::Interrupt)) => {
            Fault::Limit(format!("it computed for longer than {} s", limits.cpu.as_secs_f32()))
        }
        (Some(Exceeded::Memory), _) => {
            Fault::Limit(format!("it wanted more than {} MiB of memory", limits.memory_bytes >> 20))
        }
        (Some(Exceeded::MemoryOfAll), _) => Fault::MemoryInUse,
        (Some(Exceeded::Tables), _) => Fault::Limit("its tables are too large".into()),
        (None, Some(Trap::StackOverflow)) => Fault::Limit("its stack overflowed".into()),
        (None, _) => {
            let said = context.last_words();
            let why = context.for_people(&first_line(error), 300);
            Fault::Trap(if said.is_empty() { why } else { format!("{why}; it last wrote: {said}") })
        }
    }
}

/// An error without its backtrace: the innermost cause says what happened.
fn first_line(error: &wasmtime::Error) -> String {
    error.root_cause().to_string().lines().next().unwrap_or_default().to_owned()
}

fn chain(error: &wasmtime::Error) -> String {
    error.chain().map(|cause| cause.to_string()).collect::<Vec<_>>().join(": ")
}
