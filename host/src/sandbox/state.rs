//! What one store holds: made for a call, gone after it. Nothing of one call is visible in another.

use std::{fmt::Display, net::SocketAddr, sync::Arc, time::Duration};

use wasmtime::{
    Engine, Store, UpdateDeadline,
    component::{HasData, Linker, Resource, ResourceTable},
};
use wasmtime_wasi::{
    FsPerms, HostWallClock, WasiCtx, WasiCtxView, WasiView,
    p2::bindings::sockets::{ip_name_lookup, network},
    sockets::{SocketAddrUse, WasiSocketsCtxView, WasiSocketsView},
};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};
use wasmtime_wasi_io::bindings::wasi::io::error;

use super::{
    Fault,
    context::Context,
    egress::EgressError,
    hooks::Hooks,
    limits::{Exceeded, Limiter},
    pattern,
    stdio::Lines,
};
use crate::clock::Clock;

/// A host of a `tcp` grant, as written there, and its checked addresses.
type Hosts = Vec<(url::Host, SocketAddr)>;

/// The state of one store.
pub struct State {
    context: Arc<Context>,
    wasi: WasiCtx,
    table: ResourceTable,
    http: WasiHttpCtx,
    hooks: Hooks,
    pub(super) limiter: Limiter,
    tcp: Arc<Hosts>,
}

impl State {
    /// A fresh store: no environment, no arguments, no input, no network and no files but what is granted.
    ///
    /// # Errors
    /// Where a granted folder cannot be made, or a granted name not be resolved.
    pub(super) async fn store(engine: &Engine, context: Arc<Context>, clock: &Clock) -> Result<Store<Self>, Fault> {
        let mut wasi = WasiCtx::builder();
        wasi.stdout(Lines::new(context.clone()));
        wasi.stderr(Lines::new(context.clone()));
        wasi.max_random_size(64 << 10);
        wasi.wall_clock(WallClock(clock.clone()));
        wasi.allow_udp(false);
        for (name, path) in context.grants.directories() {
            let refused =
                |error: &dyn Display| Fault::Setup(format!("the folder `{name}` ({}): {error}", path.display()));
            let made = make_private(path).map_err(|error| refused(&error))?;
            wasi.preopened_dir(made, format!("/{name}"), FsPerms::ReadWrite).map_err(|error| refused(&error))?;
        }
        let tcp = Arc::new(resolve_tcp(&context).await?);
        if tcp.is_empty() {
            wasi.allow_tcp(false);
        } else {
            let allowed = tcp.clone();
            let denials = context.clone();
            wasi.allow_tcp(true).allow_ip_name_lookup(true).socket_addr_check(move |address, purpose| {
                let granted = match purpose {
                    SocketAddrUse::TcpConnect => allowed.iter().any(|(_, known)| *known == address),
                    // Before connecting, the system binds to any address and port of its choosing.
                    SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
                    _ => false,
                };
                if !granted {
                    denials.deny(&format!("a connection to {address} is not granted to the plugin"));
                }
                Box::pin(async move { granted })
            });
        }
        let mut table = ResourceTable::new();
        table.set_max_capacity(context.limits.resources);
        let state = Self {
            wasi: wasi.build(),
            table,
            http: WasiHttpCtx::new(),
            hooks: Hooks::new(context.clone()),
            limiter: Limiter::new(&context.limits, context.usage.clone()),
            tcp,
            context,
        };
        let (transfer, ticks) = (state.context.limits.transfer_bytes, state.context.limits.ticks());
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(transfer);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |mut store| {
            let state = store.data_mut();
            if state.context.usage.tick() >= ticks {
                state.limiter.exceeded = Some(Exceeded::Cpu);
                return Ok(UpdateDeadline::Interrupt);
            }
            Ok(UpdateDeadline::Yield(1))
        });
        Ok(store)
    }

    /// The call that this store is for.
    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

/// The time as the guest sees it: the server's own.
struct WallClock(Clock);

impl HostWallClock for WallClock {
    fn resolution(&self) -> Duration {
        Duration::from_micros(1)
    }

    fn now(&self) -> Duration {
        (self.0.now() - chrono::DateTime::UNIX_EPOCH).to_std().unwrap_or_default()
    }
}

/// The folder, made if missing, for this server's user only.
fn make_private(path: &std::path::Path) -> std::io::Result<&std::path::Path> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    Ok(path)
}

async fn resolve_tcp(context: &Context) -> Result<Hosts, Fault> {
    let mut hosts = Vec::new();
    for target in context.grants.tcp() {
        let refused = |error: EgressError| {
            if !error.denied() {
                // A name server that is away for a moment is nothing that somebody has to set right.
                return Fault::Unreachable(error.to_string());
            }
            context.deny(&error.to_string());
            Fault::Setup(error.to_string())
        };
        context.egress.permits(&target).map_err(refused)?;
        for address in context.egress.addresses(&target).await.map_err(refused)? {
            hosts.push((target.host.clone(), SocketAddr::new(address, target.port)));
        }
    }
    Ok(hosts)
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

/// Names are looked up when the call starts, by the host; the guest sees those answers and can ask for nothing else, so
/// that neither a second answer nor the asking itself leads anywhere.
struct Lookup<'a> {
    sockets: WasiSocketsCtxView<'a>,
    hosts: Arc<Hosts>,
}

struct HasLookup;

impl HasData for HasLookup {
    type Data<'a> = Lookup<'a>;
}

impl network::Host for Lookup<'_> {
    fn convert_error_code(&mut self, error: wasmtime_wasi::p2::SocketError) -> wasmtime::Result<network::ErrorCode> {
        error.downcast()
    }

    fn network_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<network::ErrorCode>> {
        self.sockets.network_error_code(error)
    }
}

impl network::HostNetwork for Lookup<'_> {
    fn drop(&mut self, network: Resource<network::Network>) -> wasmtime::Result<()> {
        network::HostNetwork::drop(&mut self.sockets, network)
    }
}

impl ip_name_lookup::Host for Lookup<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<network::Network>,
        name: String,
    ) -> Result<Resource<ip_name_lookup::ResolveAddressStream>, wasmtime_wasi::p2::SocketError> {
        let asked = pattern::parse_host(&name).ok();
        match self.hosts.iter().find(|(host, _)| asked.as_ref() == Some(host)) {
            // An address resolves to itself.
            Some((_, address)) => self.sockets.resolve_addresses(network, address.ip().to_string()),
            None => Err(network::ErrorCode::AccessDenied.into()),
        }
    }
}

impl ip_name_lookup::HostResolveAddressStream for Lookup<'_> {
    fn resolve_next_address(
        &mut self,
        stream: Resource<ip_name_lookup::ResolveAddressStream>,
    ) -> Result<Option<network::IpAddress>, wasmtime_wasi::p2::SocketError> {
        self.sockets.resolve_next_address(stream)
    }

    fn subscribe(
        &mut self,
        stream: Resource<ip_name_lookup::ResolveAddressStream>,
    ) -> wasmtime::Result<Resource<wasmtime_wasi::p2::DynPollable>> {
        self.sockets.subscribe(stream)
    }

    fn drop(&mut self, stream: Resource<ip_name_lookup::ResolveAddressStream>) -> wasmtime::Result<()> {
        ip_name_lookup::HostResolveAddressStream::drop(&mut self.sockets, stream)
    }
}

/// What a guest may read of an error: its messages. The library's own way shows the host's backtrace too, where those are on.
struct Errors<'a>(&'a mut ResourceTable);

struct HasErrors;

impl HasData for HasErrors {
    type Data<'a> = Errors<'a>;
}

impl error::Host for Errors<'_> {}

impl error::HostError for Errors<'_> {
    fn to_debug_string(&mut self, error: Resource<error::Error>) -> wasmtime::Result<String> {
        Ok(format!("{:#}", self.0.get(&error)?))
    }

    fn drop(&mut self, error: Resource<error::Error>) -> wasmtime::Result<()> {
        error::HostError::drop(self.0, error)
    }
}

/// Links WASI 0.2 without `wasi:http`.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    linker.allow_shadowing(true);
    ip_name_lookup::add_to_linker::<_, HasLookup>(linker, |state| {
        let hosts = state.tcp.clone();
        Lookup { sockets: state.sockets(), hosts }
    })?;
    error::add_to_linker::<_, HasErrors>(linker, |state| Errors(&mut state.table))?;
    linker.allow_shadowing(false);
    Ok(())
}
