//! What a policy looks at. Only that is built for deciding, and resources that differ in nothing of it need not be
//! decided one by one. Whatever is not recognised counts as looking at everything.

use std::collections::BTreeSet;

use cedar_policy::pst::{BinaryOp, Clause, EntityOrSlot, EntityUID, Expr, Literal, ResourceConstraint, Template, Var};
use uuid::Uuid;

use super::schema::NAMESPACE;

/// What of the principal, the resource, the action and the context is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reads {
    bits: u32,
    /// Things told apart by their identity; others only need to be none of these.
    pub(super) ids: BTreeSet<Uuid>,
    /// An attribute looked at on another person, who does not show it.
    pub(super) hidden: Option<String>,
}

macro_rules! bits {
    ($($name:ident = $bit:literal;)*) => {
        $(pub(super) const $name: u32 = 1 << $bit;)*
    };
}

bits! {
    P_ORGANIZATION = 0;
    P_EMAIL = 1;
    P_NAME = 2;
    P_ATTRIBUTES = 3;
    P_ROLES = 4;
    P_WORKSPACE_ROLES = 5;
    P_GRANTS = 6;
    P_ADMINISTRATOR = 7;
    R_ORGANIZATION = 8;
    R_WORKSPACE = 9;
    R_NAME = 10;
    R_ENVIRONMENT = 11;
    R_LABELS = 12;
    // Only whether the owner is the principal.
    R_OWN = 13;
    R_OWNER = 14;
    R_IDENTITY = 15;
    ACTION = 16;
    CONTEXT = 17;
}

const ALL: u32 = (1 << 18) - 1;

impl Reads {
    /// What one policy's conditions look at; its scope is the index's business.
    pub(super) fn of(policy: &Template) -> Self {
        let mut reads = Self::default();
        for clause in policy.clauses() {
            let (Clause::When(expr) | Clause::Unless(expr)) = clause;
            reads.expr(expr);
        }
        if let ResourceConstraint::In(EntityOrSlot::Entity(uid))
        | ResourceConstraint::IsIn(_, EntityOrSlot::Entity(uid)) = &policy.resource
            && entity_type(&uid.ty.0) == Some("Role")
        {
            reads.hidden = Some("roles".into());
        }
        reads
    }

    pub(super) fn has(&self, bit: u32) -> bool {
        self.bits & bit != 0
    }

    pub(super) fn add(&mut self, bits: u32) {
        self.bits |= bits;
    }

    /// Looks at what the other looks at; identities do not matter for that.
    pub(super) fn look_at(&mut self, other: &Self) {
        self.bits |= other.bits;
    }

    /// Both together.
    pub(super) fn join(&mut self, other: &Self) {
        self.bits |= other.bits;
        self.ids.extend(&other.ids);
    }

    fn everything(&mut self) {
        self.bits = ALL;
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::Literal(_) => {}
            Expr::Var(var) => match var {
                Var::Principal => {}
                Var::Resource => self.add(R_IDENTITY),
                Var::Action => self.add(ACTION),
                Var::Context => self.add(CONTEXT),
            },
            Expr::UnaryOp { expr, .. } | Expr::Like { expr, .. } => self.expr(expr),
            Expr::BinaryOp { op, left, right } => self.binary(*op, left, right),
            Expr::GetAttr { expr, attr } => self.attribute(expr, attr),
            Expr::HasAttr { expr, attrs } => {
                self.attribute(expr, attrs.first());
                // `has a.b` looks into the value of `a`: fine for records, further than is known for entities.
                let record = ["attributes", "labels"].contains(&attrs.first().as_str()) || is_context(expr);
                if attrs.len() > 1 && !record {
                    self.everything();
                }
            }
            Expr::Is { expr, in_expr: None, .. } => {
                if !matches!(**expr, Expr::Var(_)) {
                    self.expr(expr);
                }
            }
            Expr::Is { expr, in_expr: Some(within), .. } => self.binary(BinaryOp::In, expr, within),
            Expr::IfThenElse { cond, then_expr, else_expr } => {
                self.expr(cond);
                self.expr(then_expr);
                self.expr(else_expr);
            }
            Expr::Set(items) => items.iter().for_each(|item| self.expr(item)),
            Expr::Record(fields) => fields.values().for_each(|value| self.expr(value)),
            _ => self.everything(),
        }
    }

    fn binary(&mut self, op: BinaryOp, left: &Expr, right: &Expr) {
        match op {
            BinaryOp::Eq | BinaryOp::NotEq => {
                for (one, other) in [(left, right), (right, left)] {
                    match (one, other) {
                        (Expr::Var(Var::Resource), Expr::Literal(Literal::EntityUID(uid))) => return self.id(uid),
                        (Expr::GetAttr { expr, attr }, Expr::Var(Var::Principal))
                            if matches!(**expr, Expr::Var(Var::Resource)) && attr == "owner" =>
                        {
                            return self.add(R_OWN);
                        }
                        _ => {}
                    }
                }
                self.expr(left);
                self.expr(right);
            }
            BinaryOp::In => match (left, right) {
                (Expr::Var(Var::Resource), Expr::Literal(Literal::EntityUID(uid))) => {
                    self.id(uid);
                    self.add(R_WORKSPACE | R_ORGANIZATION);
                }
                (Expr::Var(Var::Resource), Expr::Set(items)) => {
                    self.add(R_WORKSPACE | R_ORGANIZATION);
                    for item in items {
                        match &**item {
                            Expr::Literal(Literal::EntityUID(uid)) => self.id(uid),
                            other => {
                                self.add(R_IDENTITY);
                                self.expr(other);
                            }
                        }
                    }
                }
                // Ancestors of what is neither in the request itself nor a role are not known.
                (Expr::Var(_), _) => {
                    self.expr(left);
                    self.expr(right);
                }
                _ => {
                    self.add(R_IDENTITY | R_WORKSPACE | R_ORGANIZATION);
                    self.expr(left);
                    self.expr(right);
                }
            },
            BinaryOp::GetTag | BinaryOp::HasTag => {
                match left {
                    Expr::Var(Var::Resource) => self.add(R_LABELS),
                    Expr::GetAttr { expr, .. } if is_context(expr) => self.add(CONTEXT),
                    _ => self.everything(),
                }
                self.expr(right);
            }
            _ => {
                self.expr(left);
                self.expr(right);
            }
        }
    }

    fn id(&mut self, uid: &EntityUID) {
        if entity_type(&uid.ty.0) == Some("Role") {
            // Whether another person holds a role is not loaded.
            self.hidden = Some("roles".into());
            self.everything();
        }
        // What is not a UUID is no thing's identity.
        if let Some((_, id)) = known(uid) {
            self.ids.insert(id);
        }
    }

    fn attribute(&mut self, base: &Expr, name: &str) {
        match base {
            Expr::Var(Var::Principal) => self.add(match name {
                "organization" => P_ORGANIZATION,
                "email" => P_EMAIL,
                "name" => P_NAME,
                "attributes" => P_ATTRIBUTES,
                "roles" => P_ROLES,
                "workspace_roles" => P_WORKSPACE_ROLES,
                "grants" => P_GRANTS,
                "platform_administrator" => P_ADMINISTRATOR,
                _ => ALL,
            }),
            Expr::Var(Var::Resource) => match name {
                "organization" => self.add(R_ORGANIZATION),
                "workspace" => self.add(R_WORKSPACE),
                "name" => self.add(R_NAME),
                "environment" => self.add(R_ENVIRONMENT),
                "labels" => self.add(R_LABELS),
                "owner" => self.add(R_OWNER),
                hidden => {
                    self.hidden = Some(hidden.to_owned());
                    self.everything();
                }
            },
            Expr::Var(Var::Context) => self.add(CONTEXT),
            // Into a record, or into the gateway of the context, which is built whole.
            Expr::GetAttr { expr, attr } if is_context(expr) || (is_entity(expr) && is_record(attr)) => {
                self.attribute(expr, attr);
            }
            // `context.gateway.labels.region`
            Expr::GetAttr { expr, attr } if is_record(attr) => match &**expr {
                Expr::GetAttr { expr: inner, .. } if is_context(inner) => self.add(CONTEXT),
                _ => self.everything(),
            },
            _ => self.everything(),
        }
    }
}

fn is_context(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Context))
}

fn is_entity(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Principal | Var::Resource))
}

fn is_record(attribute: &str) -> bool {
    matches!(attribute, "attributes" | "labels")
}

/// The type's name and the id of an entity that could be one of ours: in our namespace, with a UUID written our way.
pub(super) fn known(uid: &EntityUID) -> Option<(&str, Uuid)> {
    let name = entity_type(&uid.ty.0)?;
    let id = Uuid::parse_str(&uid.eid).ok()?;
    let mut text = Uuid::encode_buffer();
    (*id.hyphenated().encode_lower(&mut text) == *uid.eid).then_some((name, id))
}

/// The type's name within our namespace.
pub(super) fn entity_type(name: &cedar_policy::pst::Name) -> Option<&str> {
    match name.namespace.as_slice() {
        [one] if one.as_str() == NAMESPACE => Some(name.id.as_str()),
        _ => None,
    }
}
