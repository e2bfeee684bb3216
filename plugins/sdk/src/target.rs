//! Deployment targets: what agents are deployed to.

use std::marker::PhantomData;

use serde_json::value::RawValue;

use crate::bindings::deployment_target::exports::kaizen::deployment_target::target as raw;
use crate::{Call, Error, Plugin, Result, call};

/// Deploys agents. Report what happens with [`progress`](crate::progress()).
pub trait DeploymentTarget: Plugin {
    /// Is the target there and are the credentials good? Returns a sentence for the operator.
    ///
    /// # Errors
    /// What to change, or that it is away.
    fn check(call: &Call<Self::Config>) -> Result<String>;

    /// Deploys a release. The same `deployment_id` again must give the same registration.
    ///
    /// # Errors
    /// [`Error::Unavailable`] is tried again.
    fn deploy(call: &Call<Self::Config>, release: &Release) -> Result<Registration>;

    /// How a registration is now.
    ///
    /// # Errors
    /// If the target can't tell. That something is gone is a [`State`], not an error.
    fn status(call: &Call<Self::Config>, registration_id: &str) -> Result<State>;

    /// Removes a registration; removing what is already gone succeeds.
    ///
    /// # Errors
    /// If it may still be there.
    fn undeploy(call: &Call<Self::Config>, registration_id: &str) -> Result<()>;
}

/// What is to be deployed.
#[derive(Debug, Clone)]
pub struct Release {
    /// The same for every attempt.
    pub deployment_id: String,
    /// The agent.
    pub agent_id: String,
    /// What people call it.
    pub agent_name: String,
    /// The agent's version, from 1.
    pub version: u32,
    /// e.g. `production`.
    pub environment: String,
    /// `kaizen.workflow.v1`: the agent's settings and its graph, exactly as its digest was taken.
    pub workflow: Box<RawValue>,
    /// SHA-256 of the workflow's text, hexadecimal.
    pub digest: String,
}

/// How the target calls what was deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The target's own id, given to [`DeploymentTarget::status`] and [`DeploymentTarget::undeploy`].
    pub id: String,
    /// Where it is reached, if the target says.
    pub endpoint: Option<String>,
}

/// How a registration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not there yet, and what it waits for.
    Pending(String),
    /// It answers.
    Active,
    /// It will not become active, and why.
    Failed(String),
    /// It was removed.
    Gone,
}

/// Connects a [`DeploymentTarget`] to the world's exports.
pub struct Adapter<P>(PhantomData<P>);

impl<P: DeploymentTarget> raw::Guest for Adapter<P> {
    fn check(call: raw::Call) -> Result<String, raw::Error> {
        call::run::<P, _>(call, P::check)
    }

    fn deploy(call: raw::Call, release: raw::Release) -> Result<raw::Registration, raw::Error> {
        call::run::<P, _>(call, |call| {
            let workflow = RawValue::from_string(release.workflow)
                .map_err(|error| Error::Rejected(format!("the workflow is not JSON: {error}")))?;
            let release = Release {
                deployment_id: release.deployment_id,
                agent_id: release.agent_id,
                agent_name: release.agent_name,
                version: release.version,
                environment: release.environment,
                workflow,
                digest: release.digest,
            };
            let registration = P::deploy(call, &release)?;
            Ok(raw::Registration { id: registration.id, endpoint: registration.endpoint })
        })
    }

    fn status(call: raw::Call, registration_id: String) -> Result<raw::State, raw::Error> {
        call::run::<P, _>(call, |call| {
            Ok(match P::status(call, &registration_id)? {
                State::Pending(what) => raw::State::Pending(what),
                State::Active => raw::State::Active,
                State::Failed(why) => raw::State::Failed(why),
                State::Gone => raw::State::Gone,
            })
        })
    }

    fn undeploy(call: raw::Call, registration_id: String) -> Result<(), raw::Error> {
        call::run::<P, _>(call, |call| P::undeploy(call, &registration_id))
    }
}

/// Exports a [`DeploymentTarget`] as the component's deployment target: `kaizen_plugin::deployment_target!(MyPlugin);`
#[macro_export]
macro_rules! deployment_target {
    ($plugin:ty) => {
        // On the machine itself there is nothing to export; this keeps the plugin from counting as unused.
        const _: ::core::marker::PhantomData<$plugin> = ::core::marker::PhantomData;
        #[cfg(target_os = "wasi")]
        const _: () = {
            type Manifest = $crate::manifest::Adapter<$plugin>;
            type Exported = $crate::target::Adapter<$plugin>;
    $crate::bindings::shared::export!(Manifest with_types_in $crate::bindings::shared);
    $crate::bindings::deployment_target::export!(Exported with_types_in $crate::bindings::deployment_target);
        };
    };
}
