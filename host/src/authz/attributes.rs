//! The types of the tenant's own attributes and labels, taken from how a policy set uses them.
//!
//! Strict validation wants every attribute declared. Asking tenants to declare theirs beside each policy set would be
//! one more thing to keep in step, and their use already says it: what is compared with a number is a number, what
//! `contains` something is a list. A use that contradicts another is then an ordinary validation error. Labels are
//! strings, so only their names are taken.

use std::collections::BTreeMap;

use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, Template, UnaryOp, Var};
use serde_json::{Value, json};

/// A type an attribute can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Type {
    Bool,
    Long,
    String,
    Set(Box<Type>),
}

impl Type {
    fn strings() -> Self {
        Type::Set(Box::new(Type::String))
    }

    fn to_schema(&self) -> Value {
        match self {
            Type::Bool => json!({"type": "Boolean"}),
            Type::Long => json!({"type": "Long"}),
            Type::String => json!({"type": "String"}),
            Type::Set(of) => json!({"type": "Set", "element": of.to_schema()}),
        }
    }
}

/// Names with the types their first telling use gives them.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Types(BTreeMap<String, Option<Type>>);

impl Types {
    /// How many names there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn note(&mut self, name: &str, wanted: Option<Type>) {
        let known = self.0.entry(name.to_owned()).or_default();
        if known.is_none() {
            *known = wanted;
        }
    }

    /// The attributes of a record in Cedar's JSON schema; a use that tells nothing means a string.
    pub(super) fn to_schema(&self, required: bool) -> Value {
        let entry = |(name, of): (&String, &Option<Type>)| {
            let mut schema = of.as_ref().unwrap_or(&Type::String).to_schema();
            if let Some(schema) = schema.as_object_mut() {
                schema.insert("required".into(), required.into());
            }
            (name.clone(), schema)
        };
        Value::Object(self.0.iter().map(entry).collect())
    }
}

/// What a policy set uses below `attributes` and below `labels`.
#[derive(Default)]
pub(super) struct Uses {
    pub(super) attributes: Types,
    pub(super) labels: Types,
}

impl Uses {
    /// Takes in one policy.
    pub(super) fn policy(&mut self, policy: &Template) {
        for clause in policy.clauses() {
            let (Clause::When(expr) | Clause::Unless(expr)) = clause;
            self.expr(expr, Some(Type::Bool));
        }
    }

    fn expr(&mut self, expr: &Expr, wanted: Option<Type>) {
        match expr {
            Expr::GetAttr { expr: base, attr } => match record(base) {
                Some(Record::Attributes) => self.attributes.note(attr, wanted),
                Some(Record::Labels) => self.labels.note(attr, Some(Type::String)),
                None => self.expr(base, None),
            },
            Expr::HasAttr { expr: base, attrs } => match (record(base), last(base, attrs.iter())) {
                (Some(Record::Attributes), _) => self.attributes.note(attrs.first(), None),
                (Some(Record::Labels), _) => self.labels.note(attrs.first(), Some(Type::String)),
                // `principal has attributes.department` in one go.
                (None, Some((Record::Attributes, name))) => self.attributes.note(name, None),
                (None, Some((Record::Labels, name))) => self.labels.note(name, Some(Type::String)),
                (None, None) => self.expr(base, None),
            },
            Expr::UnaryOp { op, expr } => {
                let wanted = match op {
                    UnaryOp::Not => Some(Type::Bool),
                    UnaryOp::Neg => Some(Type::Long),
                    UnaryOp::IsEmpty => Some(Type::strings()),
                    UnaryOp::Datetime | UnaryOp::Decimal | UnaryOp::Duration | UnaryOp::Ip => Some(Type::String),
                    _ => None,
                };
                self.expr(expr, wanted);
            }
            Expr::BinaryOp { op, left, right } => {
                let (l, r) = operands(op, left, right);
                self.expr(left, l);
                self.expr(right, r);
            }
            Expr::Like { expr, .. } => self.expr(expr, Some(Type::String)),
            Expr::Is { expr, in_expr, .. } => {
                self.expr(expr, None);
                if let Some(expr) = in_expr {
                    self.expr(expr, None);
                }
            }
            Expr::IfThenElse { cond, then_expr, else_expr } => {
                self.expr(cond, Some(Type::Bool));
                self.expr(then_expr, wanted.clone());
                self.expr(else_expr, wanted);
            }
            Expr::Set(items) => {
                let of = match wanted {
                    Some(Type::Set(of)) => Some(*of),
                    _ => items.iter().find_map(|item| type_of(item)),
                };
                items.iter().for_each(|item| self.expr(item, of.clone()));
            }
            Expr::Record(fields) => fields.values().for_each(|value| self.expr(value, None)),
            _ => {}
        }
    }
}

enum Record {
    Attributes,
    Labels,
}

fn record_named(name: &str) -> Option<Record> {
    match name {
        "attributes" => Some(Record::Attributes),
        "labels" => Some(Record::Labels),
        _ => None,
    }
}

/// Whether this is `….attributes` or `….labels` of an entity.
fn record(expr: &Expr) -> Option<Record> {
    match expr {
        Expr::GetAttr { expr: base, attr } if is_entity(base) => record_named(attr),
        _ => None,
    }
}

/// Whether this is `….attributes` or `….labels` of an entity.
pub(super) fn is_own_record(expr: &Expr) -> bool {
    record(expr).is_some()
}

/// For `X has a.b.c`: how many steps lead to `attributes` or `labels`, if the path goes into it.
pub(super) fn steps_into_own_record<'a>(
    base: &Expr,
    path: impl Iterator<Item = &'a cedar_policy::pst::SmolStr>,
) -> Option<usize> {
    last(base, path)?;
    Some(if is_entity(base) { 1 } else { 2 })
}

fn is_entity(expr: &Expr) -> bool {
    match expr {
        Expr::Var(Var::Principal | Var::Resource) => true,
        Expr::GetAttr { expr, attr } => matches!(**expr, Expr::Var(Var::Context)) && attr == "gateway",
        _ => false,
    }
}

/// For `X has a.b.c`: the name below `attributes` or `labels`, if the path goes there.
fn last<'a>(base: &Expr, path: impl Iterator<Item = &'a cedar_policy::pst::SmolStr>) -> Option<(Record, &'a str)> {
    let mut path = path.map(|name| name.as_str());
    let mut first = path.next()?;
    if matches!(base, Expr::Var(Var::Context)) && first == "gateway" {
        first = path.next()?;
    } else if !is_entity(base) {
        return None;
    }
    Some((record_named(first)?, path.next()?))
}

/// What each side of an operation has to be.
fn operands(op: &BinaryOp, left: &Expr, right: &Expr) -> (Option<Type>, Option<Type>) {
    let element = |set: Option<Type>| match set {
        Some(Type::Set(of)) => Some(*of),
        _ => None,
    };
    match op {
        BinaryOp::Eq | BinaryOp::NotEq => (type_of(right), type_of(left)),
        BinaryOp::And | BinaryOp::Or => (Some(Type::Bool), Some(Type::Bool)),
        BinaryOp::Less | BinaryOp::LessEq | BinaryOp::Greater | BinaryOp::GreaterEq => {
            (Some(Type::Long), Some(Type::Long))
        }
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul => (Some(Type::Long), Some(Type::Long)),
        BinaryOp::Contains => {
            let of = type_of(right).unwrap_or(Type::String);
            (Some(Type::Set(Box::new(of))), element(type_of(left)))
        }
        BinaryOp::ContainsAll | BinaryOp::ContainsAny => {
            (type_of(right).or(Some(Type::strings())), type_of(left).or(Some(Type::strings())))
        }
        BinaryOp::GetTag | BinaryOp::HasTag => (None, Some(Type::String)),
        _ => (None, None),
    }
}

/// The type of an expression that says so by itself.
fn type_of(expr: &Expr) -> Option<Type> {
    match expr {
        Expr::Literal(Literal::Bool(_)) => Some(Type::Bool),
        Expr::Literal(Literal::Long(_)) => Some(Type::Long),
        Expr::Literal(Literal::String(_)) => Some(Type::String),
        Expr::Set(items) => {
            Some(Type::Set(Box::new(items.iter().find_map(|item| type_of(item)).unwrap_or(Type::String))))
        }
        Expr::UnaryOp { op: UnaryOp::Neg, .. } => Some(Type::Long),
        Expr::BinaryOp { op, .. } => match op {
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul => Some(Type::Long),
            BinaryOp::GetTag => Some(Type::String),
            BinaryOp::Eq | BinaryOp::NotEq | BinaryOp::And | BinaryOp::Or | BinaryOp::In | BinaryOp::Contains => {
                Some(Type::Bool)
            }
            _ => None,
        },
        Expr::GetAttr { expr, attr } => match (&**expr, attr.as_str()) {
            (_, "name" | "email" | "environment" | "weekday") => Some(Type::String),
            (Expr::Var(Var::Context), "hour") => Some(Type::Long),
            (base, _) => matches!(record(base), Some(Record::Labels)).then_some(Type::String),
        },
        _ => None,
    }
}
