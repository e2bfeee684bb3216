//! Expressions of a policy with some of their parts replaced.

use std::sync::Arc;

use cedar_policy::pst::Expr;

/// The expression with `by` in place of each of its direct parts; one without parts is copied.
pub(super) fn with_parts(expr: &Expr, mut by: impl FnMut(&Arc<Expr>) -> Arc<Expr>) -> Expr {
    match expr {
        Expr::UnaryOp { op, expr } => Expr::UnaryOp { op: *op, expr: by(expr) },
        Expr::BinaryOp { op, left, right } => Expr::BinaryOp { op: *op, left: by(left), right: by(right) },
        Expr::GetAttr { expr, attr } => Expr::GetAttr { expr: by(expr), attr: attr.clone() },
        Expr::HasAttr { expr, attrs } => Expr::HasAttr { expr: by(expr), attrs: attrs.clone() },
        Expr::Like { expr, pattern } => Expr::Like { expr: by(expr), pattern: pattern.clone() },
        Expr::Is { expr, entity_type, in_expr } => {
            Expr::Is { expr: by(expr), entity_type: entity_type.clone(), in_expr: in_expr.as_ref().map(by) }
        }
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            Expr::IfThenElse { cond: by(cond), then_expr: by(then_expr), else_expr: by(else_expr) }
        }
        Expr::Set(items) => Expr::Set(items.iter().map(by).collect()),
        Expr::Record(fields) => Expr::Record(fields.iter().map(|(name, value)| (name.clone(), by(value))).collect()),
        other => other.clone(),
    }
}
