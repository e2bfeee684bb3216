//! Environments in a policy's text: one that none is ever called would be compared in vain, and a `forbid` never apply.

use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, Var};

use super::{text::Parsed, tokens::find};
use crate::domain::environment::Environment;

/// Every text that an environment is compared with and cannot be, by its place.
pub(super) fn misspelt(text: &str, parsed: &Parsed) -> Vec<(usize, String)> {
    let mut faults = Vec::new();
    for source in &parsed.policies {
        let mut compared = Vec::new();
        for clause in source.tree.clauses() {
            let (Clause::When(expr) | Clause::Unless(expr)) = clause;
            collect(expr, &mut compared);
        }
        for written in compared {
            let instead = match Environment::parse(&written) {
                Ok(one) if one.as_str() == written => continue,
                Ok(one) => format!("write `\"{one}\"`"),
                Err(fault) => fault.to_string(),
            };
            let at = find(text, &source.part, &[&format!("{written:?}")]);
            let message = format!("in {}: no environment is called {written:?}: {instead}", source.name);
            faults.push((at, message));
        }
    }
    faults
}

/// The texts that environments are compared with.
fn collect(expr: &Expr, compared: &mut Vec<String>) {
    let mut note = |expr: &Expr| match expr {
        Expr::Literal(Literal::String(text)) if !text.is_empty() => compared.push(text.to_string()),
        _ => {}
    };
    match expr {
        Expr::BinaryOp { op: BinaryOp::Eq | BinaryOp::NotEq, left, right } => {
            if is_environment(left) {
                note(right);
            } else if is_environment(right) {
                note(left);
            } else {
                collect(left, compared);
                collect(right, compared);
            }
        }
        Expr::BinaryOp { op: BinaryOp::Contains, left, right } if is_environment(right) => match &**left {
            Expr::Set(items) => items.iter().for_each(|item| note(item)),
            other => collect(other, compared),
        },
        Expr::BinaryOp { left, right, .. } => {
            collect(left, compared);
            collect(right, compared);
        }
        Expr::UnaryOp { expr, .. }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => collect(expr, compared),
        Expr::Is { expr, in_expr, .. } => {
            collect(expr, compared);
            in_expr.iter().for_each(|within| collect(within, compared));
        }
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            [cond, then_expr, else_expr].into_iter().for_each(|part| collect(part, compared));
        }
        Expr::Set(items) => items.iter().for_each(|item| collect(item, compared)),
        Expr::Record(fields) => fields.values().for_each(|value| collect(value, compared)),
        _ => {}
    }
}

/// `resource.environment`, `context.environment` or `context.gateway.environment`.
fn is_environment(expr: &Expr) -> bool {
    let Expr::GetAttr { expr, attr } = expr else { return false };
    let of = match &**expr {
        Expr::Var(Var::Resource | Var::Context) => true,
        Expr::GetAttr { expr, attr } => matches!(**expr, Expr::Var(Var::Context)) && attr == "gateway",
        _ => false,
    };
    of && attr == "environment"
}

#[cfg(test)]
mod tests {
    use crate::{
        authz::{Bounds, Checker, Invalid},
        config::limits::ServerLimits,
    };

    fn faults(condition: &str) -> Vec<String> {
        let text = format!(
            "forbid (principal, action == Kaizen::Action::\"agent.deploy\", resource)\nwhen {{ {condition} }};"
        );
        match Checker::new(Bounds::of(&ServerLimits::default())).unwrap().check(&text) {
            Err(Invalid::Faults(faults)) => faults.iter().map(ToString::to_string).collect(),
            other => other.map(|_| Vec::new()).unwrap(),
        }
    }

    #[test]
    fn an_environment_that_none_is_called_is_refused_at_its_place() {
        for (condition, part) in [
            ("context.environment == \"Production\"", "write `\"production\"`"),
            ("\" production\" != context.environment", "write `\"production\"`"),
            ("context.gateway.environment == \"PROD\"", "write `\"prod\"`"),
            ("[\"staging\", \"Production\"].contains(context.environment)", "write `\"production\"`"),
            ("if context.hour > 3 then context.environment == \"pr\u{43e}d\" else false", "U+043E"),
        ] {
            let found = faults(condition);
            assert!(
                found.len() == 1 && found[0].starts_with("line 2") && found[0].contains(part),
                "{condition}: {found:?}"
            );
        }
        for condition in [
            "context.environment == \"production\"",
            "context.environment == \"\"",
            "[\"staging\", \"prod\"].contains(context.environment)",
            "context.gateway.name == \"Production\"",
        ] {
            assert_eq!(faults(condition), [""; 0], "{condition}");
        }
    }
}
