//! Behind HAProxy and nginx: who the client is, that attackers there do not use up what others may do, and that restarting
//! the servers one after the other loses no request.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use reqwest::Method;
use serde_json::json;

use crate::{
    database::make_read_only,
    deployments::Shop,
    harness::{
        Answer, Backend, Balancer, Client, Events, PASSWORD, Person, Reply, Setup, World, eventually, free_port, within,
    },
};

/// Where the proxy of these tests comes from when it asks the server: nobody else does.
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 250);

fn loopback(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

/// Attackers have used up what they may do sooner than by default.
async fn setup() -> Setup {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_LOG", "info,kaizen::api=debug");
    setup.with("KAIZEN_ACCOUNT_FAILURE_BURST", "3").with("KAIZEN_LOOKUP_BURST", "50")
}

async fn world(client_address: &str) -> World {
    let setup = setup().await.with("KAIZEN_TRUSTED_PROXIES", PROXY.to_string());
    World::with(setup.with("KAIZEN_CLIENT_ADDRESS", client_address)).await
}

/// HAProxy in front of this server, coming from [`PROXY`].
async fn haproxy(world: &World, options: &str, without_header: bool) -> Balancer {
    let server = &world.server;
    Balancer::haproxy(&[(&server.url, &server.ops)], |config| {
        let config = config.replace(" check port", &format!(" source {PROXY} {options} check port"));
        if without_header { config.replace("option forwardfor", "") } else { config }
    })
    .await
}

async fn login(client: &Client, email: &str, password: &str) -> Answer {
    client.post("/api/v1/auth/login", json!({ "email": email, "password": password })).await
}

/// Five who guess and look up as fast as they can, and one who knows their password.
async fn five_attackers_and_one_honest_person(proxy: &Balancer, world: &World) {
    let tenant = world.tenant("acme").await;
    let Person { email, .. } = tenant.person("ada", "viewer").await;
    let (done, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let attackers: Vec<_> = (1..=5)
        .map(|number| {
            let client = Client::coming_from(&proxy.url, loopback(number + 10));
            let (done, refused, email) = (done.clone(), refused.clone(), email.clone());
            tokio::spawn(async move {
                let mut round = 0_usize;
                while !done.load(Ordering::Relaxed) {
                    round += 1;
                    // Somebody else's address, the honest person's, and nobody's.
                    let whose = if round.is_multiple_of(2) { email.clone() } else { format!("n{round}@acme.test") };
                    let guess = login(&client, &whose, "wrong harbour turnip lantern");
                    let look = client.get("/api/v1/auth/connections?email=a@acme.test");
                    let (guess, look) = tokio::join!(guess, look);
                    assert!([401, 429, 503].contains(&guess.status), "{guess:?}");
                    for answer in [guess, look] {
                        if answer.status == 429 {
                            let wait = answer.header("retry-after");
                            assert!(wait.parse::<u64>().is_ok_and(|seconds| seconds >= 1), "Retry-After: {wait}");
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            })
        })
        .collect();
    eventually("the attackers have used up what they may do", || async {
        (refused.load(Ordering::Relaxed) > 20).then_some(())
    })
    .await;
    let honest = Client::coming_from(&proxy.url, loopback(77));
    for round in 0..20 {
        let answer = login(&honest, &email, PASSWORD).await;
        assert_eq!(answer.status, 200, "round {round}: {answer:?}");
        let token = answer.body["refresh_token"].as_str().expect("a token").to_owned();
        honest.post("/api/v1/auth/refresh", json!({ "refresh_token": token })).await.ok(200);
        honest.get("/api/v1/auth/connections?email=ada@acme.test").await.ok(200);
    }
    done.store(true, Ordering::Relaxed);
    for attacker in attackers {
        within("an attacker ends", attacker).await.expect("no attacker saw anything else");
    }
    let log = world.server.log();
    assert!(log.contains("127.0.0.77"), "the log names the client");
    assert!(!log.contains(&PROXY.to_string()), "and not the proxy");
}

#[tokio::test]
async fn attackers_behind_haproxy_take_nothing_from_others() {
    let world = world("x-forwarded-for").await;
    let proxy = haproxy(&world, "", false).await;
    five_attackers_and_one_honest_person(&proxy, &world).await;
}

#[tokio::test]
async fn attackers_behind_haproxy_with_the_proxy_protocol_take_nothing_from_others() {
    let world = world("proxy-protocol").await;
    let proxy = haproxy(&world, "send-proxy-v2", true).await;
    five_attackers_and_one_honest_person(&proxy, &world).await;
}

#[tokio::test]
async fn attackers_behind_nginx_take_nothing_from_others() {
    // nginx comes from 127.0.0.1, and so do the tests that set the tenant up: without a header, that is the client.
    let world = World::with(setup().await.with("KAIZEN_TRUSTED_PROXIES", "127.0.0.1/32")).await;
    let proxy = Balancer::nginx(&world.server.url).await;
    five_attackers_and_one_honest_person(&proxy, &world).await;
}

/// What the log says of requests that carry these headers, and come from here.
async fn client_in_log(world: &World, from: Ipv4Addr, headers: &[(&str, &str)]) -> String {
    let request = crate::harness::fresh_id().to_string();
    let mut headers = headers.to_vec();
    headers.push(("x-request-id", &request));
    let client = Client::coming_from(&world.server.url, from);
    client.request(Method::GET, "/api/v1/auth/me", None, &headers).await.problem(401, "unauthenticated");
    eventually("the request is in the log", || async {
        let log = world.server.log();
        let line = log.lines().find(|line| line.contains(&request))?.to_owned();
        let (_, rest) = line.split_once("\"client\":\"")?;
        Some(rest.split_once('"')?.0.to_owned())
    })
    .await
}

#[tokio::test]
async fn only_a_trusted_proxy_says_who_the_client_is() {
    let world = world("x-forwarded-for").await;
    let named = [("x-forwarded-for", "192.0.2.7")];
    assert_eq!(client_in_log(&world, PROXY, &named).await, "192.0.2.7");
    assert_eq!(client_in_log(&world, loopback(9), &named).await, "127.0.0.9");
    let spoofed =
        [("x-forwarded-for", "10.1.1.1, 192.0.2.7"), ("forwarded", "for=10.2.2.2"), ("x-real-ip", "10.3.3.3")];
    assert_eq!(client_in_log(&world, PROXY, &spoofed).await, "192.0.2.7");
    assert_eq!(client_in_log(&world, PROXY, &[]).await, PROXY.to_string());
    assert!(!world.server.log().contains("seems to be in front"), "{}", world.server.log());
}

#[tokio::test]
async fn a_proxy_that_nobody_named_is_noticed_once() {
    let world = World::with(setup().await).await;
    for _ in 0..3 {
        assert_eq!(client_in_log(&world, loopback(9), &[("x-forwarded-for", "192.0.2.7")]).await, "127.0.0.9");
    }
    let log = world.server.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("KAIZEN_TRUSTED_PROXIES")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
}

#[tokio::test]
async fn what_is_no_proxy_protocol_is_cut_off_and_nobody_else_can_speak_it() {
    let world = world("proxy-protocol").await;
    // From elsewhere than the proxies, plain HTTP is served, and the protocol's header is none.
    assert_eq!(client_in_log(&world, loopback(9), &[]).await, "127.0.0.9");
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend([192, 0, 2, 7, 127, 0, 0, 1, 1, 1, 2, 2]);
    header.extend(b"GET /api/v1/auth/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(crate::connections::sent(&world, loopback(9), &header).await.starts_with("HTTP/1.1 400"));
    assert!(crate::connections::sent(&world, PROXY, &header).await.starts_with("HTTP/1.1 401"));
    let plain = b"GET /api/v1/auth/me HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(crate::connections::sent(&world, PROXY, plain).await, "");
}

#[tokio::test]
async fn events_come_through_nginx_as_they_happen() {
    let shop = Shop::start(Backend::Sqlite).await;
    let proxy = Balancer::nginx(&shop.world.server.url).await;
    shop.gateway.stub.next([Reply::Hold]);
    let deployment = shop.deploy().await;
    let path = format!("/api/v1/deployments/{deployment}/events");
    let owner = shop.tenant.owner.client.at(&proxy.url);
    shop.gateway.stub.held(1).await;
    let mut events = Events::open(&owner, &path, None).await;
    assert!(events.next().await.is_some(), "while the deployment is held");
    let direct = shop.tenant.owner.http.get(format!("{}{path}", shop.world.server.url));
    let answer = direct.bearer_auth(owner.token.as_deref().expect("signed in")).send().await.expect("an answer");
    assert_eq!(answer.headers()["x-accel-buffering"], "no");
    assert_eq!(answer.headers()["cache-control"], "no-cache, no-transform");
    shop.gateway.stub.release();
    let rest = events.rest().await;
    assert!(rest.iter().any(|event| event.data["status"] == "active"), "{rest:?}");
}

#[tokio::test]
async fn restarting_one_after_the_other_loses_no_request() {
    // After its restart, the proxy looks for it where it was.
    let ops = format!("127.0.0.1:{}", free_port());
    let setup = Setup::new(Backend::Postgres).await.with("KAIZEN_DRAIN_SECONDS", "3").with("KAIZEN_OPS_LISTEN", ops);
    let world = World::with(setup).await;
    let tenant = world.tenant("acme").await;
    let World { server: mut one, setup } = world;
    let mut two = setup.start_beside_with(&[("KAIZEN_OPS_LISTEN", "127.0.0.1:0")]).await;
    // HAProxy is not to hide a refused connection by trying again.
    let servers = [(one.url.as_str(), one.ops.as_str()), (two.url.as_str(), two.ops.as_str())];
    let proxy = Balancer::haproxy(&servers, |config| config.replace("mode http", "mode http\n    retries 0")).await;
    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let token = tenant.owner.token.clone().expect("signed in");
    let people: Vec<_> = (0..8_u8)
        .map(|number| {
            // Half of them keep their connections.
            let client = if number % 2 == 0 {
                Client::new(&proxy.url)
            } else {
                Client::coming_from(&proxy.url, loopback(number + 20))
            };
            let (client, done, answered) = (client.bearing(&token), done.clone(), answered.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    client.get("/api/v1/auth/me").await.ok(200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let more = async |count: usize| {
        let from = answered.load(Ordering::Relaxed);
        eventually("requests are answered", || async {
            (answered.load(Ordering::Relaxed) >= from + count || people.iter().any(|p| p.is_finished())).then_some(())
        })
        .await;
    };
    more(50).await;
    let ops = Client::new(&one.ops);
    one.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("it says that it stops", || async {
        let answer = ops.get("/readyz").await;
        (answer.status == 503 && answer.text == "stopping\n").then_some(())
    })
    .await;
    let direct = Client::new(&one.url).bearing(&token).get("/api/v1/auth/me").await;
    assert_eq!(direct.header("connection"), "close", "and still serves: {direct:?}");
    direct.ok(200);
    assert_eq!(one.stop_status().await.code(), Some(0));
    more(50).await;
    let mut one = setup.start().await;
    let ops = Client::new(&one.ops);
    eventually("the proxy sends it requests again", || async {
        ops.get("/metrics").await.text.contains("kaizen_http_requests_total{").then_some(())
    })
    .await;
    assert_eq!(two.stop().await.code(), Some(0));
    more(50).await;
    done.store(true, Ordering::Relaxed);
    for person in people {
        within("a person ends", person).await.expect("no request was lost");
    }
    assert_eq!(one.stop().await.code(), Some(0));
}

#[tokio::test]
async fn what_is_only_read_goes_on_behind_haproxy_where_the_database_takes_no_changes() {
    let world = World::start(Backend::Postgres).await;
    let tenant = world.tenant("acme").await;
    // Many checks are made while the requests below are.
    let often = |config: String| config.replace("inter 500ms", "inter 20ms");
    let proxy = Balancer::haproxy(&[(&world.server.url, &world.server.ops)], often).await;
    let owner = tenant.owner.client.at(&proxy.url);
    let mut direct = world.setup.database.direct().await;
    make_read_only(&mut direct, &tenant.owner).await.problem(503, "unavailable");
    assert_eq!(Client::new(&world.server.ops).get("/readyz").await.status, 503);
    let mut read = 0;
    for _ in 0..300 {
        let answer = owner.get("/api/v1/workspaces").await;
        if answer.status == 200 {
            read += 1;
        } else {
            // Over a connection that was ended with all others; never the proxy's own answer, that it has no server left.
            answer.problem(503, "unavailable");
        }
    }
    assert!(read > 200, "{read} of 300");
    let refused = owner.post("/api/v1/workspaces", json!({ "name": "first" })).await;
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    refused.problem(503, "unavailable");
}
