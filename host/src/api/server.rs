//! The listeners: bounded connections, time limits on slow clients, and a graceful end.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::anyhow;
use axum::{Router, extract::ConnectInfo, http::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Open connections at the most, each way in.
const CONNECTIONS: usize = 10_000;
/// For the head of a request to arrive.
const HEAD: Duration = Duration::from_secs(10);
/// For requests under way to end once the server is asked to stop.
const GRACE: Duration = Duration::from_secs(20);

/// Takes the address, or says who should be asked to give it up.
///
/// # Errors
/// One line with the setting to change.
pub async fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::AddrInUse => ", or stop what uses that port",
            ErrorKind::AddrNotAvailable => ": no network interface of this machine has that address",
            ErrorKind::PermissionDenied => ": a port below 1024 takes a permission that this user does not have",
            _ => "",
        };
        let variable = setting.to_uppercase();
        anyhow!("cannot listen on {address}: change `{setting}` (KAIZEN_{variable}){hint} ({error})")
    })
}

/// Serves until `stopping`, then lets requests under way finish within [`GRACE`].
pub async fn serve(listener: TcpListener, router: Router, stopping: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30)).max_concurrent_streams(200);
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit,
            () = stopping.cancelled() => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let (stream, peer) = match stream {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file handles, most likely: waiting a little lets some be closed.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        drop(stream.set_nodelay(true));
        let service = TowerToHyperService::new(router.clone().map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            request
        }));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!(seconds = GRACE.as_secs(), "some requests did not end in time and were cut off");
    }
}
