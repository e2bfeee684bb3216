//! `kaizen demo`: the story of the product, played for real over HTTP and WebSocket against its own server.

mod client;
pub mod gateway;
mod screen;
mod story;

use std::{net::SocketAddr, process::Stdio};

use anyhow::Context;
use clap::Args;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use self::{screen::Screen, story::Story};
use super::serve::{Role, Running, stop_asked};
use crate::{clock::Clock, config::Config};

/// Play the story: sign in, draw together, deploy, be refused, read the audit trail
#[derive(Debug, Args)]
pub struct Demo {
    /// End after the story, with a failure if any step did not hold
    #[arg(long)]
    exit: bool,
}

/// The gateway's process; ends with the demo.
struct Gateway {
    child: Child,
    address: String,
    key: String,
}

impl Gateway {
    async fn start(clock: &Clock) -> anyhow::Result<Self> {
        let key = hex::encode(clock.bytes::<24>());
        let mut child = Command::new(std::env::current_exe()?)
            .arg("demo-gateway")
            .env(gateway::KEY, &key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting the gateway's process")?;
        let output = child.stdout.take().context("the gateway's output")?;
        let address = BufReader::new(output).lines().next_line().await?.context("the gateway ended at once")?;
        Ok(Self { child, address: format!("http://{address}"), key })
    }

    async fn stop(mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait().await);
    }
}

impl Demo {
    /// Starts a server, plays the story against it, and leaves it up until Ctrl-C.
    ///
    /// # Errors
    /// The first step that did not hold.
    pub async fn run(self, mut config: Config) -> anyhow::Result<()> {
        let screen = Screen::new();
        let clock = Clock::system();
        // A demo must not fail because something else, such as an earlier demo, has the usual port.
        free_port_unless_asked(&config.clone(), "listen", &mut config.listen);
        free_port_unless_asked(&config.clone(), "ops_listen", &mut config.ops_listen);
        if !config.is_set("public_url") {
            let _ = config.public_url.set_port(Some(config.listen.port()));
        }
        let gateway = Gateway::start(&clock).await?;
        // The gateway is on loopback, where plugins may not go unless the operator says so.
        config.egress_allow_private.push("127.0.0.1/32".parse().map_err(anyhow::Error::msg)?);
        let database = config.database_url.split(':').next().unwrap_or_default().to_owned();
        let running = Running::start(config, Role::All).await?;
        let address = running.address.context("a server of both roles listens")?;
        let base = format!("http://{address}");
        screen.part("A server, its plugins and a gateway")?;
        screen.held(&format!("kaizen on {base}, {database}, up after {:.1} s", screen.seconds()))?;
        screen
            .held(&format!("a gateway on {}, a process of its own that speaks the Nexus protocol", gateway.address))?;
        let story =
            Story { screen: &screen, app: &running.app, base: &base, gateway: &gateway.address, key: &gateway.key };
        let played = story.play().await;
        let people = match played {
            Ok(people) => people,
            Err(error) => {
                gateway.stop().await;
                running.stop().await;
                return Err(error.context("the demo stopped at a step that did not hold"));
            }
        };
        screen.part(&format!("All of it held, in {:.1} s.", screen.seconds()))?;
        if !self.exit {
            screen.detail(&format!("API     {base}"))?;
            screen.detail(&format!("Docs    {base}/api/docs"))?;
            screen.detail(&format!("Metrics http://{}/metrics", running.ops_address))?;
            for person in &people {
                screen.detail(&format!(
                    "Sign in {} / {}   ({}, {})",
                    person.email, person.password, person.name, person.role
                ))?;
            }
            screen.part("The server stays up. Ctrl-C ends it.")?;
            stop_asked().await?;
        }
        running.stop().await;
        gateway.stop().await;
        Ok(())
    }
}

fn free_port_unless_asked(config: &Config, setting: &'static str, address: &mut SocketAddr) {
    if !config.is_set(setting) && std::net::TcpListener::bind(*address).is_err() {
        address.set_port(0);
    }
}
