//! The interfaces of `wit/`, and the host's side of those that plugins import.

use wasmtime::component::{HasSelf, Linker};

use super::{
    context::{Level, Progress},
    state::State,
};

/// What all kinds share, and the world in which a plugin only describes itself.
#[expect(missing_docs, reason = "generated; documented in wit/plugin/plugin.wit")]
pub mod common {
    wasmtime::component::bindgen!({
        path: ["../wit/plugin"],
        inline: "
            package kaizen:host;
            world described {
                import kaizen:plugin/types@0.1.0;
                import kaizen:plugin/log@0.1.0;
                import kaizen:plugin/progress@0.1.0;
                import kaizen:plugin/secrets@0.1.0;
                export kaizen:plugin/manifest@0.1.0;
            }
        ",
        world: "kaizen:host/described",
        exports: { default: async },
    });
}

/// `kaizen:identity-provider`.
#[expect(missing_docs, reason = "generated; documented in wit/identity-provider/identity-provider.wit")]
pub mod identity_provider {
    wasmtime::component::bindgen!({
        path: ["../wit/plugin", "../wit/identity-provider"],
        world: "kaizen:identity-provider/identity-provider",
        exports: { default: async },
        with: {
            "kaizen:plugin/types@0.1.0": super::common::kaizen::plugin::types,
            "kaizen:plugin/log@0.1.0": super::common::kaizen::plugin::log,
            "kaizen:plugin/secrets@0.1.0": super::common::kaizen::plugin::secrets,
        },
    });
}

/// `kaizen:deployment-target`.
#[expect(missing_docs, reason = "generated; documented in wit/deployment-target/deployment-target.wit")]
pub mod deployment_target {
    wasmtime::component::bindgen!({
        path: ["../wit/plugin", "../wit/deployment-target"],
        world: "kaizen:deployment-target/deployment-target",
        exports: { default: async },
        with: {
            "kaizen:plugin/types@0.1.0": super::common::kaizen::plugin::types,
            "kaizen:plugin/log@0.1.0": super::common::kaizen::plugin::log,
            "kaizen:plugin/progress@0.1.0": super::common::kaizen::plugin::progress,
            "kaizen:plugin/secrets@0.1.0": super::common::kaizen::plugin::secrets,
        },
    });
}

/// `kaizen:audit-sink`.
#[expect(missing_docs, reason = "generated; documented in wit/audit-sink/audit-sink.wit")]
pub mod audit_sink {
    wasmtime::component::bindgen!({
        path: ["../wit/plugin", "../wit/audit-sink"],
        world: "kaizen:audit-sink/audit-sink",
        exports: { default: async },
        with: {
            "kaizen:plugin/types@0.1.0": super::common::kaizen::plugin::types,
            "kaizen:plugin/log@0.1.0": super::common::kaizen::plugin::log,
            "kaizen:plugin/secrets@0.1.0": super::common::kaizen::plugin::secrets,
        },
    });
}

use common::kaizen::plugin::{log, progress, secrets, types};

impl types::Host for State {}

impl log::Host for State {
    fn write(&mut self, level: log::Level, message: String) {
        let level = match level {
            log::Level::Debug => Level::Debug,
            log::Level::Info => Level::Info,
            log::Level::Warn => Level::Warn,
            log::Level::Error => Level::Error,
        };
        self.context().log(level, &message);
    }
}

impl progress::Host for State {
    fn report(&mut self, percent: Option<u8>, message: String) {
        let context = self.context();
        let message = context.for_people(&message, 500);
        context.report(Progress { percent: percent.map(|percent| percent.min(100)), message });
    }
}

impl secrets::Host for State {
    fn reveal(&mut self, name: String) -> Result<String, String> {
        let context = self.context();
        context.vault.reveal(&name).inspect_err(|why| context.deny(why))
    }
}

/// Links Kaizen's own interfaces.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    log::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    progress::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    secrets::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}
