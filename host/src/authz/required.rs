//! A policy as it is where each of the tenant's own attributes and labels is there, so that what else is wrong with it shows.
//!
//! With a schema that requires them, Cedar takes `principal.attributes has level` for true and does not check what is reached
//! only otherwise: the other side of an `||`, an `else`. Here such a question becomes one that Cedar cannot answer.

use std::sync::Arc;

use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, PstConstructionError, Template, Var};

use super::{
    attributes::{is_own_record, steps_into_own_record},
    parts::with_parts,
};

/// The policy with its questions after attributes and labels of the tenant's own made unanswerable.
pub(super) fn as_if_there(policy: &Template) -> Result<Template, PstConstructionError> {
    let mut there = Template::new(
        "policy0",
        policy.effect,
        policy.principal.clone(),
        policy.action.clone(),
        policy.resource.clone(),
    );
    for clause in policy.clauses() {
        there.try_add_clause(match clause {
            Clause::When(expr) => Clause::When(rewritten(expr)),
            Clause::Unless(expr) => Clause::Unless(rewritten(expr)),
        })?;
    }
    Ok(there)
}

/// True at some times and false at others, of every request.
fn unanswerable() -> Arc<Expr> {
    let hour = Expr::GetAttr { expr: Arc::new(Expr::Var(Var::Context)), attr: "hour".into() };
    Arc::new(Expr::BinaryOp {
        op: BinaryOp::Eq,
        left: Arc::new(hour),
        right: Arc::new(Expr::Literal(Literal::Long(0))),
    })
}

fn rewritten(expr: &Arc<Expr>) -> Arc<Expr> {
    Arc::new(match &**expr {
        Expr::HasAttr { expr: base, attrs } if is_own_record(base) && attrs.tail.is_empty() => return unanswerable(),
        Expr::HasAttr { expr: base, attrs } => match steps_into_own_record(base, attrs.iter()) {
            // `resource has labels.team`: whether it has labels at all is still Cedar's to say.
            Some(steps) if attrs.len() == steps + 1 => {
                let mut record = attrs.clone();
                record.tail.truncate(steps.saturating_sub(1));
                let has = Expr::HasAttr { expr: rewritten(base), attrs: record };
                Expr::BinaryOp { op: BinaryOp::And, left: Arc::new(has), right: unanswerable() }
            }
            _ => Expr::HasAttr { expr: rewritten(base), attrs: attrs.clone() },
        },
        other => with_parts(other, rewritten),
    })
}
