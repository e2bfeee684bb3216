//! What a policy's scope asks, and what its conditions begin with.

use std::collections::BTreeSet;

use cedar_policy::pst::{
    self, ActionConstraint, BinaryOp, Clause, EntityOrSlot, EntityUID, Expr, Literal, PrincipalConstraint,
    ResourceConstraint, Template, Var,
};
use uuid::Uuid;

use super::{Guard, What, Who};
use crate::{
    authz::{
        Action, Kind,
        kind::ROLES,
        reads::{entity_type, known},
        schema::Vocabulary,
    },
    domain::role::Role,
};

/// What a policy's scope asks, and what its conditions begin with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    pub(super) actions: Option<BTreeSet<Action>>,
    /// Absent: can match nobody.
    who: Option<Who>,
    role: Option<Role>,
    pub(super) resource: ResourceScope,
    workspace: Option<Uuid>,
}

/// What a scope says of the resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ResourceScope {
    Any,
    /// Of these types only.
    Is(Vec<Kind>),
    Eq(Option<(Kind, Uuid)>),
    /// In an entity, and of these types only.
    In(Option<Within>, Option<Vec<Kind>>),
}

/// An entity that a resource can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Within {
    Workspace(Uuid),
    Organization(Uuid),
    Itself(Kind, Uuid),
}

impl Within {
    fn of(uid: &EntityUID) -> Option<Self> {
        let (name, id) = known(uid)?;
        Some(match kind_named(name)? {
            Kind::Workspace => Within::Workspace(id),
            Kind::Organization => Within::Organization(id),
            kind => Within::Itself(kind, id),
        })
    }
}

fn kind_named(name: &str) -> Option<Kind> {
    Kind::ALL.iter().copied().find(|kind| kind.entity_type() == name)
}

impl Scope {
    pub(super) fn of(vocabulary: &Vocabulary, tree: &Template) -> Self {
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
        let within = |slot: &EntityOrSlot| match slot {
            EntityOrSlot::Entity(uid) => Within::of(uid),
            EntityOrSlot::Slot(_) => None,
        };
        let kinds = |ty: &pst::EntityType| entity_type(&ty.0).and_then(kind_named).into_iter().collect::<Vec<_>>();
        let resource = match &tree.resource {
            ResourceConstraint::Any => ResourceScope::Any,
            ResourceConstraint::Is(ty) => ResourceScope::Is(kinds(ty)),
            ResourceConstraint::Eq(EntityOrSlot::Entity(uid)) => {
                ResourceScope::Eq(known(uid).and_then(|(name, id)| Some((kind_named(name)?, id))))
            }
            ResourceConstraint::Eq(EntityOrSlot::Slot(_)) => ResourceScope::Eq(None),
            ResourceConstraint::In(slot) => ResourceScope::In(within(slot), None),
            ResourceConstraint::IsIn(ty, slot) => ResourceScope::In(within(slot), Some(kinds(ty))),
        };
        let (role, workspace) = leading(tree);
        Self { actions, who, role, resource, workspace }
    }

    /// The guard for this action and kind; absent where the policy can never match them.
    pub(super) fn guard(&self, action: Action, kind: Kind) -> Option<Guard> {
        if self.actions.as_ref().is_some_and(|actions| !actions.contains(&action)) {
            return None;
        }
        let what = match &self.resource {
            ResourceScope::Any => What::Anything,
            ResourceScope::Is(kinds) => kinds.contains(&kind).then_some(What::Anything)?,
            ResourceScope::Eq(one) => one.filter(|(of, _)| *of == kind).map(|(_, id)| What::Id(id))?,
            ResourceScope::In(_, Some(kinds)) if !kinds.contains(&kind) => return None,
            // Things are in their workspace and their organization, and in themselves.
            ResourceScope::In(within, _) => match (*within)? {
                Within::Workspace(id) => What::Workspace(id),
                Within::Organization(id) => What::Organization(id),
                Within::Itself(of, id) => (of == kind).then_some(What::Id(id))?,
            },
        };
        Some(Guard { who: self.who?, role: self.role, what, workspace: self.workspace })
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
