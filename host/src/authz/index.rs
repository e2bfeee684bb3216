//! A policy set ready for deciding: for each action and kind of resource, only the policies that can match it, grouped
//! by what else their scope asks, so that a decision costs what its own policies cost.
//!
//! A scope is settled here, exactly, and left out of what Cedar then evaluates. Beyond the scope, a condition that
//! begins with `principal in Kaizen::Role::"…"` or `resource.workspace == …` (which cannot err) is settled here as well:
//! where it is false, Cedar's `&&` would stop there too.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use cedar_policy::{
    Effect, Policy, PolicySet,
    pst::{
        self, ActionConstraint, BinaryOp, Clause, EntityOrSlot, EntityUID, Expr, Literal, PrincipalConstraint,
        ResourceConstraint, Template, Var,
    },
};
use uuid::Uuid;

use super::{
    Action, Kind, Resource,
    kind::{ROLES, Roles},
    reads::{self, Reads, entity_type, known},
    schema::Vocabulary,
    text::Source,
};
use crate::domain::{principal::Principal, role::Role};

/// Where a policy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Part of the server: `policies/platform/`.
    Platform,
    /// The tenant's own.
    Tenant,
}

/// What explanations tell of a policy.
#[derive(Debug, PartialEq, Eq)]
pub struct About {
    /// Its `@id`, or its place in the file.
    pub id: String,
    /// Whose it is.
    pub origin: Origin,
    /// Whether it permits; it forbids otherwise.
    pub permits: bool,
    /// Its `@description`.
    pub description: Option<String>,
}

/// Whom a policy can match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Anyone,
    Role(Role),
    User(Uuid),
    /// Members of an organization.
    Organization(Uuid),
}

/// What a policy can match, of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum What {
    Anything,
    Id(Uuid),
    Workspace(Uuid),
    Organization(Uuid),
}

/// All of it has to hold for a policy to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Guard {
    who: Who,
    /// From a condition.
    role: Option<Role>,
    what: What,
    /// From a condition.
    workspace: Option<Uuid>,
}

impl Guard {
    fn admits(&self, principal: &Principal, roles: Roles, resource: &Resource) -> bool {
        let who = match self.who {
            Who::Anyone => true,
            Who::Role(role) => roles.contains(role),
            Who::User(id) => principal.user_id.0 == id,
            Who::Organization(id) => principal.organization_id.0 == id,
        };
        let workspace = || resource.in_workspace().map(|workspace| workspace.0);
        who && self.role.is_none_or(|role| roles.contains(role))
            && match self.what {
                What::Anything => true,
                What::Id(id) => resource.id == id,
                What::Workspace(id) => workspace() == Some(id),
                What::Organization(id) => resource.organization.0 == id,
            }
            // Without a workspace the condition errs, which is Cedar's to say.
            && self.workspace.is_none_or(|id| workspace().is_none_or(|is| is == id))
    }
}

/// Policies of one guard.
pub(super) struct Group {
    guard: Guard,
    pub(super) policies: Arc<PolicySet>,
    /// What their conditions look at.
    pub(super) reads: Arc<Reads>,
}

/// The policies for one action on one kind of resource.
#[derive(Default)]
pub(super) struct Entry {
    groups: Vec<Group>,
    /// What tells resources apart, guards included.
    pub(super) tells: Reads,
}

impl Entry {
    /// The groups that can match.
    pub(super) fn matching(
        &self,
        principal: &Principal,
        roles: Roles,
        resource: &Resource,
    ) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(move |group| group.guard.admits(principal, roles, resource))
    }
}

/// A compiled policy set.
pub(super) struct Index {
    entries: HashMap<(Action, Kind), Entry>,
    about: HashMap<String, Arc<About>>,
}

impl Index {
    /// Groups the policies.
    ///
    /// # Errors
    /// If Cedar does not take a policy back: a defect.
    pub(super) fn compile(vocabulary: &Vocabulary, origin: Origin, sources: &[Source]) -> anyhow::Result<Self> {
        let mut about = HashMap::new();
        let mut compiled = Vec::with_capacity(sources.len());
        for (place, source) in sources.iter().enumerate() {
            let id = place.to_string();
            compiled.push(Compiled::new(vocabulary, source, &id)?);
            let permits = source.effect == Effect::Permit;
            let description = source.description.clone();
            about.insert(id, Arc::new(About { id: source.name.clone(), origin, permits, description }));
        }

        let mut shared: HashMap<Vec<usize>, (Arc<PolicySet>, Arc<Reads>)> = HashMap::new();
        let mut entries = HashMap::new();
        for (action, kind) in vocabulary.pairs() {
            let mut grouped: Vec<(Guard, Vec<usize>)> = Vec::new();
            let mut places: HashMap<Guard, usize> = HashMap::new();
            for (place, policy) in compiled.iter().enumerate() {
                let Some(guard) = policy.guard(action, kind) else { continue };
                let at = *places.entry(guard).or_insert_with(|| {
                    grouped.push((guard, Vec::new()));
                    grouped.len() - 1
                });
                if let Some((_, members)) = grouped.get_mut(at) {
                    members.push(place);
                }
            }
            let mut entry = Entry::default();
            for (guard, members) in grouped {
                let (policies, reads) = match shared.get(&members) {
                    Some(known) => known.clone(),
                    None => {
                        let mut reads = Reads::default();
                        let mut set = PolicySet::new();
                        for policy in members.iter().filter_map(|place| compiled.get(*place)) {
                            reads.join(&policy.reads);
                            set.add(policy.policy.clone())?;
                        }
                        let made = (Arc::new(set), Arc::new(reads));
                        shared.insert(members, made.clone());
                        made
                    }
                };
                entry.tells.join(&reads);
                match guard.what {
                    What::Anything => {}
                    What::Id(id) => drop(entry.tells.ids.insert(id)),
                    What::Workspace(_) => entry.tells.add(reads::R_WORKSPACE),
                    What::Organization(_) => entry.tells.add(reads::R_ORGANIZATION),
                }
                if guard.workspace.is_some() {
                    entry.tells.add(reads::R_WORKSPACE);
                }
                entry.groups.push(Group { guard, policies, reads });
            }
            entries.insert((action, kind), entry);
        }
        Ok(Self { entries, about })
    }

    /// The policies for an action on a kind of resource.
    pub(super) fn entry(&self, action: Action, kind: Kind) -> Option<&Entry> {
        self.entries.get(&(action, kind))
    }

    /// What explanations tell of a policy, by the id that Cedar reports.
    pub(super) fn about(&self, id: &cedar_policy::PolicyId) -> Option<&Arc<About>> {
        let id: &str = id.as_ref();
        self.about.get(id)
    }
}

/// One policy without its scope, and what its scope asks.
struct Compiled {
    policy: Policy,
    reads: Reads,
    actions: Option<BTreeSet<Action>>,
    /// Absent: can match nobody.
    who: Option<Who>,
    role: Option<Role>,
    resource: ResourceConstraint,
    workspace: Option<Uuid>,
}

impl Compiled {
    fn new(vocabulary: &Vocabulary, source: &Source, id: &str) -> anyhow::Result<Self> {
        let tree = &source.tree;
        let named = |uid: &EntityUID| match entity_type(&uid.ty.0) {
            Some("Action") => vocabulary.actions(&uid.eid),
            _ => Vec::new(),
        };
        let actions = match &tree.action {
            ActionConstraint::Any => None,
            // An action equals itself only, but a group is never asked for, so that the two need not be told apart.
            ActionConstraint::Eq(uid) => {
                Some(Action::parse(&uid.eid).into_iter().filter(|a| named(uid).contains(a)).collect())
            }
            ActionConstraint::In(uids) => Some(uids.iter().flat_map(named).collect()),
        };
        let entity = |slot: &EntityOrSlot| match slot {
            EntityOrSlot::Entity(uid) => who_in(uid),
            EntityOrSlot::Slot(_) => None,
        };
        let is_user = |ty: &pst::EntityType| entity_type(&ty.0) == Some("User");
        let who = match &tree.principal {
            PrincipalConstraint::Any => Some(Who::Anyone),
            PrincipalConstraint::Is(ty) => is_user(ty).then_some(Who::Anyone),
            PrincipalConstraint::Eq(slot) => entity(slot).filter(|who| matches!(who, Who::User(_))),
            PrincipalConstraint::In(slot) => entity(slot),
            PrincipalConstraint::IsIn(ty, slot) => entity(slot).filter(|_| is_user(ty)),
        };
        let mut rest =
            Template::new(id, tree.effect, PrincipalConstraint::Any, ActionConstraint::Any, ResourceConstraint::Any);
        for clause in tree.clauses() {
            rest.try_add_clause(clause.clone())?;
        }
        let (role, workspace) = leading(tree);
        Ok(Self {
            reads: Reads::of(tree),
            policy: Policy::from_pst(pst::Policy::Static(rest.try_into()?))?,
            actions,
            who,
            role,
            resource: tree.resource.clone(),
            workspace,
        })
    }

    /// The guard for this action and kind; absent where the policy can never match them.
    fn guard(&self, action: Action, kind: Kind) -> Option<Guard> {
        if self.actions.as_ref().is_some_and(|actions| !actions.contains(&action)) {
            return None;
        }
        let within = |slot: &EntityOrSlot| match slot {
            EntityOrSlot::Entity(uid) => what_in(uid, kind),
            EntityOrSlot::Slot(_) => None,
        };
        let is_kind = |ty: &pst::EntityType| entity_type(&ty.0) == Some(kind.entity_type());
        let what = match &self.resource {
            ResourceConstraint::Any => Some(What::Anything),
            ResourceConstraint::Is(ty) => is_kind(ty).then_some(What::Anything),
            ResourceConstraint::Eq(EntityOrSlot::Entity(uid)) => match known(uid) {
                Some((name, id)) if name == kind.entity_type() => Some(What::Id(id)),
                _ => None,
            },
            ResourceConstraint::Eq(EntityOrSlot::Slot(_)) => None,
            ResourceConstraint::In(slot) => within(slot),
            ResourceConstraint::IsIn(ty, slot) => within(slot).filter(|_| is_kind(ty)),
        };
        Some(Guard { who: self.who?, role: self.role, what: what?, workspace: self.workspace })
    }
}

/// Who is in this entity: principals are in their roles and their organization, and in themselves.
fn who_in(uid: &EntityUID) -> Option<Who> {
    match entity_type(&uid.ty.0)? {
        "Role" => role(uid).map(Who::Role),
        "User" => known(uid).map(|(_, id)| Who::User(id)),
        "Organization" => known(uid).map(|(_, id)| Who::Organization(id)),
        _ => None,
    }
}

/// What is in this entity: things are in their workspace and their organization, and in themselves.
fn what_in(uid: &EntityUID, kind: Kind) -> Option<What> {
    let (name, id) = known(uid)?;
    match name {
        "Workspace" => Some(What::Workspace(id)),
        "Organization" => Some(What::Organization(id)),
        name => (name == kind.entity_type()).then_some(What::Id(id)),
    }
}

fn role(uid: &EntityUID) -> Option<Role> {
    ROLES.into_iter().find(|role| role.as_str() == uid.eid.as_str() && entity_type(&uid.ty.0) == Some("Role"))
}

/// Conditions that a policy begins with and that cannot err: a role held, and a workspace.
fn leading(policy: &Template) -> (Option<Role>, Option<Uuid>) {
    let (mut held, mut workspace) = (None, None);
    let Some(Clause::When(first)) = policy.clauses().first() else { return (held, workspace) };
    let mut conjuncts = Vec::new();
    flatten(first, &mut conjuncts);
    for conjunct in conjuncts {
        let Expr::BinaryOp { op, left, right } = conjunct else { break };
        let Expr::Literal(Literal::EntityUID(uid)) = &**right else { break };
        match (op, &**left) {
            (BinaryOp::In, Expr::Var(Var::Principal)) if held.is_none() && role(uid).is_some() => held = role(uid),
            (BinaryOp::Eq, Expr::GetAttr { expr, attr })
                if workspace.is_none() && attr == "workspace" && matches!(**expr, Expr::Var(Var::Resource)) =>
            {
                // What follows is not reached where there is no workspace: this errs then, and is the last that is settled.
                if let Some(("Workspace", id)) = known(uid) {
                    workspace = Some(id);
                }
                break;
            }
            _ => break,
        }
    }
    (held, workspace)
}

fn flatten<'a>(expr: &'a Expr, into: &mut Vec<&'a Expr>) {
    match expr {
        Expr::BinaryOp { op: BinaryOp::And, left, right } => {
            flatten(left, into);
            flatten(right, into);
        }
        other => into.push(other),
    }
}
