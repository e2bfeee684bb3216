//! Decides: deny wins, and doubt denies.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use cedar_policy::{AuthorizationError, Authorizer};
use chrono::{DateTime, Utc};

use super::{
    Action, Context, Deciding, Decision, Kind, Origin, Reason, Resource,
    entities::Question,
    errors,
    index::{About, Group, Index},
    kind::Roles,
    reads::Reads,
    schema::{Shared, Vocabulary},
    text::{self, Bounds},
    validate,
};
use crate::{
    config::limits::ServerLimits,
    domain::{principal::Principal, role::Role},
};

/// The platform's policies, in the order they are explained in `policies/README.md`.
const PLATFORM: &[(&str, &str)] = &[
    ("boundaries", include_str!("../../../policies/platform/boundaries.cedar")),
    ("member", include_str!("../../../policies/platform/member.cedar")),
    ("owner", include_str!("../../../policies/platform/owner.cedar")),
    ("admin", include_str!("../../../policies/platform/admin.cedar")),
    ("developer", include_str!("../../../policies/platform/developer.cedar")),
    ("viewer", include_str!("../../../policies/platform/viewer.cedar")),
    ("auditor", include_str!("../../../policies/platform/auditor.cedar")),
    ("platform_administrator", include_str!("../../../policies/platform/platform_administrator.cedar")),
];

/// What all tenants share, and only the operator's people may touch: no tenant's policies are asked, whoever's they are.
fn platforms_alone(action: Action) -> bool {
    matches!(
        action,
        Action::OrganizationCreate
            | Action::PluginRead
            | Action::PluginCreate
            | Action::PluginActivate
            | Action::PluginDelete
    )
}

/// The tenant's side of a decision.
#[derive(Clone, Copy)]
pub(super) enum Tenant<'a> {
    /// No policy set is in force.
    None,
    /// This one is.
    Policies(&'a Index),
    /// One is in force and cannot be read: everything it could decide is denied.
    Unreadable(&'a str),
}

/// Schema, platform policies and evaluator.
pub(super) struct Engine {
    pub(super) vocabulary: Shared,
    platform: Index,
    boundary: Arc<About>,
    authorizer: Authorizer,
}

/// What evaluation found.
#[derive(Default)]
struct Found {
    permits: Vec<Arc<About>>,
    forbids: Vec<Arc<About>>,
    errors: Vec<Deciding>,
    fault: Option<String>,
}

impl Engine {
    /// Reads, validates and compiles what is embedded.
    ///
    /// # Errors
    /// A defect in `policies/`.
    pub(super) fn new() -> anyhow::Result<Self> {
        text::deep(Self::read)?
    }

    fn read() -> anyhow::Result<Self> {
        let vocabulary: Shared = Arc::new(Vocabulary::load()?);
        let mut sources = Vec::new();
        let bounds = Bounds::of(&ServerLimits::default());
        for (file, source) in PLATFORM {
            let faults = |faults: Vec<text::PolicyFault>| {
                let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
                anyhow::anyhow!("policies/platform/{file}.cedar: {}", lines.join("; "))
            };
            let parsed = text::read(source, Some(&bounds)).map_err(faults)?;
            let validated = validate::validate(&vocabulary, source, &parsed, &bounds, &|| false).map_err(faults)?;
            if let Some(warning) = validated.warnings.first() {
                bail!("policies/platform/{file}.cedar: {warning}");
            }
            sources.extend(parsed.policies);
        }
        let platform = Index::compile(&vocabulary, Origin::Platform, "", &sources)?;
        let boundary = sources.iter().find(|source| source.name == "organization-boundary");
        let boundary = boundary.context("policies/platform/boundaries.cedar lost `organization-boundary`")?;
        let boundary = Arc::new(About {
            id: boundary.name.clone(),
            origin: Origin::Platform,
            permits: false,
            description: boundary.description.clone(),
            place: 0,
            line: 1,
            column: 1,
        });
        Ok(Self { vocabulary, platform, boundary, authorizer: Authorizer::new() })
    }

    /// Decides one request.
    pub(super) fn decide(
        &self,
        tenant: Tenant<'_>,
        principal: &Principal,
        action: Action,
        resource: &Resource,
        context: &Context,
        now: DateTime<Utc>,
    ) -> Decision {
        let deny = |reason, policies, fault| Decision::deny(reason, principal, action, resource, policies, fault);
        // Tenancy does not hang on policies alone.
        let foreign = |of: &Resource| of.organization != principal.organization_id;
        if foreign(resource) || context.gateway.as_ref().is_some_and(foreign) {
            return deny(Reason::Forbidden, vec![Deciding { policy: self.boundary.clone(), error: None }], None);
        }
        if !self.vocabulary.applies(action, resource.kind) {
            let (action, kind) = (action.as_str(), resource.kind.as_str());
            tracing::error!(action, kind, "the schema does not let this action apply to this kind");
            return deny(Reason::Error, Vec::new(), Some(format!("{action} does not apply to {kind}")));
        }
        let tenant = match tenant {
            _ if platforms_alone(action) || self.protected(principal, action) => None,
            Tenant::None => None,
            Tenant::Policies(index) => Some(index),
            Tenant::Unreadable(why) => return deny(Reason::Error, Vec::new(), Some(why.to_owned())),
        };
        let question =
            Question { principal, roles: Roles::effective(principal, resource), action, resource, context, now };
        let found = self.evaluate(&question, tenant);
        let deciding = |policies: Vec<Arc<About>>| {
            policies.into_iter().map(|policy| Deciding { policy, error: None }).collect::<Vec<_>>()
        };
        if !found.forbids.is_empty() {
            deny(Reason::Forbidden, deciding(found.forbids), None).with_errors(found.errors)
        } else if !found.errors.is_empty() || found.fault.is_some() {
            deny(Reason::Error, found.errors, found.fault)
        } else if found.permits.is_empty() {
            deny(Reason::NotPermitted, Vec::new(), None)
        } else {
            Decision::allow(action, deciding(found.permits))
        }
    }

    /// What an owner needs to see and mend a policy set that went wrong: tenant policies have no say in it.
    fn protected(&self, principal: &Principal, action: Action) -> bool {
        matches!(
            action,
            Action::PolicyCreate
                | Action::PolicyRead
                | Action::PolicyUpdate
                | Action::PolicyActivate
                | Action::PolicyDelete
                | Action::OrganizationRead
                | Action::MembershipRead
        ) && principal.has_role(Role::Owner)
    }

    /// What tells resources of one kind apart, for this action: resources that agree in it are decided alike.
    pub(super) fn tells(&self, tenant: Tenant<'_>, action: Action, kind: Kind) -> Reads {
        let mut reads = Reads::default();
        let tenant = match tenant {
            Tenant::Policies(index) => index.entry(action, kind),
            Tenant::None | Tenant::Unreadable(_) => None,
        };
        for entry in self.platform.entry(action, kind).into_iter().chain(tenant) {
            reads.join(&entry.tells);
        }
        reads
    }

    fn evaluate(&self, question: &Question<'_>, tenant: Option<&Index>) -> Found {
        let (action, kind) = (question.action, question.resource.kind);
        let mut groups: Vec<(&Index, &Group)> = Vec::with_capacity(8);
        let mut reads = Reads::default();
        for index in std::iter::once(&self.platform).chain(tenant) {
            let Some(entry) = index.entry(action, kind) else { continue };
            for group in entry.matching(question.principal, question.roles, question.resource) {
                reads.look_at(&group.reads);
                groups.push((index, group));
            }
        }
        let mut found = Found::default();
        let (request, entities) = match question.build(&self.vocabulary, &reads) {
            Ok(built) => built,
            Err(error) => {
                found.fault = Some(format!("the request could not be described to the policies: {error}"));
                return found;
            }
        };
        for (index, group) in groups {
            let response = self.authorizer.is_authorized(&request, &group.policies, &entities);
            for AuthorizationError::PolicyEvaluationError(error) in response.diagnostics().errors() {
                match index.about(error.policy_id()) {
                    Some(policy) => {
                        errors::count(policy.origin, error.inner());
                        found.errors.push(Deciding { policy: policy.clone(), error: Some(error.inner().to_string()) });
                    }
                    None => found.fault = Some(error.to_string()),
                }
            }
            for id in response.diagnostics().reason() {
                match index.about(id) {
                    Some(policy) if policy.permits => found.permits.push(policy.clone()),
                    Some(policy) => found.forbids.push(policy.clone()),
                    None => found.fault = Some(format!("policy {id} is not known")),
                }
            }
        }
        // Cedar names them in no order.
        let place = |policy: &About| (policy.origin, policy.place);
        found.permits.sort_by_key(|policy| place(policy));
        found.forbids.sort_by_key(|policy| place(policy));
        found.errors.sort_by_key(|deciding| place(&deciding.policy));
        found
    }

    /// For the tests: every policy with its own scope, by Cedar alone, with everything there is to look at.
    #[cfg(test)]
    pub(super) fn everything(&self, sources: &[super::text::Source], question: &Question<'_>) -> (bool, bool, bool) {
        let mut all = Reads::default();
        all.add(u32::MAX);
        let (request, entities) = question.build(&self.vocabulary, &all).unwrap();
        let set = cedar_policy::PolicySet::from_policies(sources.iter().map(|s| s.policy.clone())).unwrap();
        let response = self.authorizer.is_authorized(&request, &set, &entities);
        let errors = response.diagnostics().errors().next().is_some();
        let allow = response.decision() == cedar_policy::Decision::Allow;
        let determined = response.diagnostics().reason().next().is_some();
        (allow, !allow && determined, errors)
    }

    /// For the tests: the same through an index.
    #[cfg(test)]
    pub(super) fn indexed(&self, index: &Index, question: &Question<'_>) -> (bool, bool, bool) {
        let engine = Self {
            vocabulary: self.vocabulary.clone(),
            platform: Index::compile(&self.vocabulary, Origin::Platform, "", &[]).unwrap(),
            boundary: self.boundary.clone(),
            authorizer: Authorizer::new(),
        };
        let found = engine.evaluate(question, Some(index));
        assert_eq!(found.fault, None);
        let forbidden = !found.forbids.is_empty();
        (!forbidden && !found.permits.is_empty(), forbidden, !found.errors.is_empty())
    }
}
