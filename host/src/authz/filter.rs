//! Deciding for many resources at once: those that no policy at hand can tell apart are decided once.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Action, Context, Decision, Kind, Resource,
    engine::{Engine, Tenant},
    kind::Roles,
    reads::{self, Reads},
};
use crate::domain::{id::OrganizationId, id::UserId, id::WorkspaceId, principal::Principal};

/// Resources with the same class are decided alike.
#[derive(PartialEq, Eq, Hash)]
struct Class<'a> {
    organization: OrganizationId,
    roles: Roles,
    id: Option<Uuid>,
    workspace: Option<Option<WorkspaceId>>,
    name: Option<&'a str>,
    environment: Option<Option<&'a str>>,
    labels: Option<&'a BTreeMap<String, String>>,
    owner: Option<Option<UserId>>,
    /// Whether there is an owner, and whether it is the principal.
    own: Option<(bool, bool)>,
}

impl<'a> Class<'a> {
    fn of(tells: &Reads, principal: &Principal, resource: &'a Resource) -> Self {
        // Oneself shows more than other people do.
        let oneself = resource.id == principal.user_id.0;
        let identified = oneself || tells.has(reads::R_IDENTITY) || tells.ids.contains(&resource.id);
        Self {
            organization: resource.organization,
            roles: Roles::effective(principal, resource),
            id: identified.then_some(resource.id),
            workspace: tells.has(reads::R_WORKSPACE).then(|| resource.in_workspace()),
            name: tells.has(reads::R_NAME).then_some(resource.name.as_str()),
            environment: tells.has(reads::R_ENVIRONMENT).then_some(resource.environment.as_deref()),
            labels: tells.has(reads::R_LABELS).then_some(&resource.labels),
            owner: tells.has(reads::R_OWNER).then_some(resource.owner),
            own: tells
                .has(reads::R_OWN)
                .then_some((resource.owner.is_some(), resource.owner == Some(principal.user_id))),
        }
    }
}

/// By what the resources of one kind are decided differently, for one principal and action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distinction {
    /// By nothing: all are decided alike.
    None,
    /// By workspace, name, environment, labels or owner.
    Attributes,
    /// By which one it is, too.
    Identity,
}

impl Distinction {
    pub(super) fn of(engine: &Engine, tenant: Tenant<'_>, principal: &Principal, action: Action, kind: Kind) -> Self {
        let tells = engine.tells(tenant, action, kind);
        let attributes =
            reads::R_WORKSPACE | reads::R_NAME | reads::R_ENVIRONMENT | reads::R_LABELS | reads::R_OWNER | reads::R_OWN;
        if tells.has(reads::R_IDENTITY) || !tells.ids.is_empty() {
            Self::Identity
        } else if tells.has(attributes) || principal.grants.iter().any(|grant| grant.workspace.is_some()) {
            Self::Attributes
        } else {
            Self::None
        }
    }
}

/// Decides for each of many resources whether it is allowed, a part of them at a time. Resources of several kinds may be mixed.
pub(super) struct Filter<'a> {
    engine: &'a Engine,
    tenant: Tenant<'a>,
    principal: &'a Principal,
    action: Action,
    resources: std::slice::Iter<'a, Resource>,
    now: DateTime<Utc>,
    kinds: HashMap<Kind, Reads>,
    decided: HashMap<(Kind, Class<'a>), bool>,
    allowed: Vec<bool>,
}

impl<'a> Filter<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        tenant: Tenant<'a>,
        (principal, action): (&'a Principal, Action),
        resources: &'a [Resource],
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            engine,
            tenant,
            principal,
            action,
            resources: resources.iter(),
            now,
            kinds: HashMap::new(),
            decided: HashMap::new(),
            allowed: Vec::with_capacity(resources.len()),
        }
    }

    /// Decides for as long as `time`, and one more; whether all are decided then. Every decision made is shown to `seen`.
    pub(super) fn proceed(&mut self, time: Duration, mut seen: impl FnMut(&Decision)) -> bool {
        let Self { engine, tenant, principal, action, now, .. } = *self;
        let (begun, context) = (Instant::now(), Context::default());
        for resource in self.resources.by_ref() {
            let tells = self.kinds.entry(resource.kind).or_insert_with(|| engine.tells(tenant, action, resource.kind));
            let class = (resource.kind, Class::of(tells, principal, resource));
            let mut late = false;
            let decision = self.decided.entry(class).or_insert_with(|| {
                let decision = engine.decide(tenant, principal, action, resource, &context, now);
                seen(&decision);
                late = begun.elapsed() >= time;
                decision.allowed
            });
            self.allowed.push(*decision);
            if late {
                break;
            }
        }
        self.resources.as_slice().is_empty()
    }

    /// For each resource that was decided, in their order.
    pub(super) fn allowed(self) -> Vec<bool> {
        self.allowed
    }
}
