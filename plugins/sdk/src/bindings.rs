//! What `wit-bindgen` makes of `wit/`. Plugins use the traits and types of this crate instead.
//!
//! A plugin's world is put together from two: what all kinds share, with the manifest, and the kind's own interface.
//! Taking the worlds of `wit/` whole would define the manifest's exports three times in one crate. The server checks
//! every component against the worlds of `wit/` when it loads it.
#![allow(
    missing_docs,
    unsafe_code,
    clippy::all,
    clippy::allow_attributes,
    reason = "generated from wit/, where the documentation is"
)]

/// What every kind imports and exports.
pub mod shared {
    wit_bindgen::generate!({
        path: "../../wit/plugin",
        inline: "
            package kaizen:sdk;
            world shared {
                import kaizen:plugin/types@0.1.0;
                import kaizen:plugin/log@0.1.0;
                import kaizen:plugin/progress@0.1.0;
                import kaizen:plugin/secrets@0.1.0;
                export kaizen:plugin/manifest@0.1.0;
            }
        ",
        world: "kaizen:sdk/shared",
        generate_all,
        generate_unused_types: true,
        pub_export_macro: true,
        default_bindings_module: "kaizen_plugin::bindings::shared",
    });
}

/// The interface of identity providers.
pub mod identity_provider {
    wit_bindgen::generate!({
        path: ["../../wit/plugin", "../../wit/identity-provider"],
        inline: "
            package kaizen:sdk;
            world identity-provider {
                export kaizen:identity-provider/provider@0.1.0;
            }
        ",
        world: "kaizen:sdk/identity-provider",
        with: {
            "kaizen:plugin/types@0.1.0": crate::bindings::shared::kaizen::plugin::types,
        },
        pub_export_macro: true,
        default_bindings_module: "kaizen_plugin::bindings::identity_provider",
    });
}

/// The interface of deployment targets.
pub mod deployment_target {
    wit_bindgen::generate!({
        path: ["../../wit/plugin", "../../wit/deployment-target"],
        inline: "
            package kaizen:sdk;
            world deployment-target {
                export kaizen:deployment-target/target@0.1.0;
            }
        ",
        world: "kaizen:sdk/deployment-target",
        with: {
            "kaizen:plugin/types@0.1.0": crate::bindings::shared::kaizen::plugin::types,
        },
        pub_export_macro: true,
        default_bindings_module: "kaizen_plugin::bindings::deployment_target",
    });
}

/// The interface of audit sinks.
pub mod audit_sink {
    wit_bindgen::generate!({
        path: ["../../wit/plugin", "../../wit/audit-sink"],
        inline: "
            package kaizen:sdk;
            world audit-sink {
                export kaizen:audit-sink/sink@0.1.0;
            }
        ",
        world: "kaizen:sdk/audit-sink",
        with: {
            "kaizen:plugin/types@0.1.0": crate::bindings::shared::kaizen::plugin::types,
        },
        pub_export_macro: true,
        default_bindings_module: "kaizen_plugin::bindings::audit_sink",
    });
}
