//! What one store holds: made for a call, gone after it. Nothing of one call is visible in another.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::Semaphore;
use wasmtime::{
    Engine, Store, StoreContextMut, UpdateDeadline,
    component::{HasData, Linker, Resource, ResourceTable},
};
use wasmtime_wasi::{
    HostWallClock, WasiCtx, WasiCtxView, WasiView,
    p2::{
        DynOutputStream,
        bindings::sockets::{ip_name_lookup, network, tcp_create_socket},
    },
    sockets::{SocketAddrUse, WasiSocketsCtxView, WasiSocketsView},
};
use wasmtime_wasi_http::{
    WasiHttpCtx, WasiHttpCtxView, WasiHttpView,
    p2::{bindings::http::types::ErrorCode, body::HostOutgoingBody},
};
use wasmtime_wasi_io::bindings::wasi::io::error;

use super::{
    Fault,
    body::Counted,
    context::Context,
    descriptors::{Descriptors, Held},
    egress::EgressError,
    folders,
    hooks::Hooks,
    limits::{Exceeded, Limiter, MemoryAccount, TICK},
    pattern,
    stdio::Lines,
};
use crate::clock::Clock;

/// The version of WASI's interfaces that wasmtime links; what is shadowed here must name the same.
pub(super) const WASI: &str = "0.2.12";

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
    descriptors: Descriptors,
    /// Sockets and files that the guest opened.
    held: Vec<Held>,
    /// What it may still put into its folders.
    pub(super) room: folders::Room,
}

/// What all calls share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) memory: MemoryAccount,
    pub(super) descriptors: Arc<Semaphore>,
    pub(super) folders: Arc<folders::Folders>,
}

impl State {
    /// A fresh store: no environment, no arguments, no input, no network and no files but what is granted.
    ///
    /// # Errors
    /// Where a granted folder cannot be made, or a granted name not be resolved.
    pub(super) async fn store(
        engine: &Engine,
        context: Arc<Context>,
        clock: &Clock,
        shared: &Shared,
    ) -> Result<Store<Self>, Fault> {
        let mut wasi = WasiCtx::builder();
        wasi.stdout(Lines::new(context.clone()));
        wasi.stderr(Lines::new(context.clone()));
        wasi.max_random_size(64 << 10);
        wasi.wall_clock(WallClock(clock.clone()));
        wasi.allow_udp(false);
        let mut room = folders::Room::none();
        if !context.grants.directories().is_empty() {
            (wasi, room) =
                shared.folders.prepare(wasi, context.caller.organization, context.grants.directories()).await?;
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
        // wasmtime-wasi-http leaves the options of each request that was sent in the table.
        let sent = context.limits.http_requests.saturating_add(context.limits.refusals.into());
        let sent = usize::try_from(sent).unwrap_or(usize::MAX);
        table.set_max_capacity(context.limits.resources.saturating_add(sent));
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(context.limits.header_bytes);
        let descriptors = Descriptors::new(context.limits.descriptors, shared.descriptors.clone());
        let state = Self {
            wasi: wasi.build(),
            table,
            http,
            hooks: Hooks::new(context.clone(), descriptors.clone()),
            limiter: Limiter::new(
                &context.limits,
                shared.memory.clone(),
                context.caller.clone(),
                context.usage.clone(),
            ),
            tcp,
            descriptors,
            held: Vec::new(),
            room,
            context,
        };
        let transfer = state.context.limits.transfer_bytes;
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(transfer);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |mut store| {
            let state = store.data_mut();
            let (usage, limits) = (&state.context.usage, &state.context.limits);
            let poll = usage.poll();
            if usage.cpu() + poll >= limits.cpu {
                state.limiter.exceeded = Some(Exceeded::Cpu);
                return Ok(UpdateDeadline::Interrupt);
            }
            if state.context.refused_too_often() {
                return Ok(UpdateDeadline::Interrupt);
            }
            // The epoch has passed while it waited, too: that is no reason to make it wait again.
            if poll < TICK / 2 {
                return Ok(UpdateDeadline::Continue(1));
            }
            usage.yields();
            Ok(UpdateDeadline::Yield(1))
        });
        Ok(store)
    }

    /// The call that this store is for.
    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Takes a descriptor for what the guest is about to open; nothing, and the refusal told, where it may open no more.
    pub(super) fn descriptor(&self, what: &str) -> Option<Held> {
        let held = self.descriptors.take();
        if held.is_none() {
            let most = self.context.limits.descriptors;
            self.context.deny(&format!("{what}: a call may open {most} sockets and files, and all calls some more"));
        }
        held
    }

    /// It was opened: the descriptor is held until the call ends.
    pub(super) fn opened(&mut self, held: Held) {
        self.held.push(held);
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
        let egress = context.egress.asked_by((&context.caller).into());
        for address in egress.addresses(&target).await.map_err(refused)? {
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
    linker.instance(&format!("wasi:sockets/tcp-create-socket@{WASI}"))?.func_wrap(
        "create-tcp-socket",
        |mut store: StoreContextMut<'_, State>, (family,): (network::IpAddressFamily,)| {
            let state = store.data_mut();
            let Some(held) = state.descriptor("a socket") else {
                return Ok((Err(network::ErrorCode::NewSocketLimit),));
            };
            Ok((match tcp_create_socket::Host::create_tcp_socket(&mut state.sockets(), family) {
                Ok(socket) => {
                    state.opened(held);
                    Ok(socket)
                }
                Err(error) => Err(error.downcast()?),
            },))
        },
    )?;
    folders::add_to_linker(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Links a `wasi:http` that can be imported and not used: everything that makes something traps.
pub(super) fn add_http_stub_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    linker.allow_shadowing(true);
    let makers = [
        "[constructor]fields",
        "[static]fields.from-list",
        "[constructor]outgoing-request",
        "[constructor]outgoing-response",
        "[constructor]request-options",
    ];
    let makers = makers.into_iter().map(|function| ("types", function));
    for (interface, function) in makers.chain([("outgoing-handler", "handle")]) {
        let mut instance = linker.instance(&format!("wasi:http/{interface}@{WASI}"))?;
        instance.func_new(function, |_, _, _, _| wasmtime::bail!("`describe` must not use the network"))?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

/// Links `wasi:http`. What is written to a request's body counts as sent when it is written: a body that is never sent
/// lies in the host's memory as well.
pub(super) fn add_http_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    linker.allow_shadowing(true);
    linker.instance(&format!("wasi:http/types@{WASI}"))?.func_wrap(
        "[method]outgoing-body.write",
        |mut store: StoreContextMut<'_, State>, (body,): (Resource<HostOutgoingBody>,)| {
            let state = store.data_mut();
            let Some(stream) = state.table.get_mut(&body)?.take_output_stream() else { return Ok((Err(()),)) };
            let context = state.context.clone();
            let counted = Counted::new(stream, context.bytes_out.clone(), move || {
                context.cut_off.store(true, Ordering::Relaxed);
                wasmtime::Error::from(ErrorCode::HttpRequestBodySize(None))
            });
            let counted: DynOutputStream = Box::new(counted);
            Ok((Ok(state.table.push_child(counted, &body)?),))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}
