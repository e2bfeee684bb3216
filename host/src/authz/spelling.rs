//! Environments in a policy's text. One that none is ever called would be compared in vain, and a `forbid` never apply: it is
//! refused in what is written now, and read in the one spelling in what was stored before there was one.

use std::sync::Arc;

use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, PatternElem, Var};

use super::{parts::with_parts, text::Parsed, tokens::find};
use crate::domain::environment::Environment;

/// Up to `most` texts that an environment is compared with and cannot be, by their places.
pub(super) fn misspelt(text: &str, parsed: &Parsed, most: usize, stop: &dyn Fn() -> bool) -> Vec<(usize, String)> {
    let mut faults = Vec::new();
    for source in &parsed.policies {
        if faults.len() >= most || stop() {
            break;
        }
        let mut compared = Vec::new();
        for clause in source.tree.clauses() {
            let (Clause::When(expr) | Clause::Unless(expr)) = clause;
            walk(expr, &mut |written| compared.push(written.clone()));
        }
        for (shown, instead) in compared.iter().filter_map(instead_of).take(most - faults.len()) {
            let at = find(text, &source.part, &[&shown]);
            faults.push((at, format!("in {}: no environment is called {shown}: {instead}", source.name)));
        }
    }
    faults
}

/// The expression with the environments that it compares in their one spelling; those that none can be called stay.
pub(super) fn respelled(expr: &Arc<Expr>) -> Arc<Expr> {
    walk(expr, &mut |written| {
        let one = match &written {
            Written::Name(name) => Environment::parse(name).ok().map(|one| Written::Name(one.to_string())),
            Written::Pattern(pattern) => Some(Written::Pattern(small(pattern))),
        };
        *written = one.unwrap_or_else(|| written.clone());
    })
}

/// What an environment is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Written {
    Name(String),
    Pattern(Vec<PatternElem>),
}

/// How a text that no environment can equal is written, and what to write; absent for one that is right.
fn instead_of(written: &Written) -> Option<(String, String)> {
    match written {
        Written::Name(name) => {
            let instead = match Environment::parse(name) {
                Ok(one) if one.as_str() == name => return None,
                Ok(one) => format!("write `\"{one}\"`"),
                Err(fault) => fault.to_string(),
            };
            Some((format!("{name:?}"), instead))
        }
        Written::Pattern(pattern) => {
            let small = small(pattern);
            (small != *pattern).then(|| (quoted(pattern), format!("write `{}`", quoted(&small))))
        }
    }
}

fn small(pattern: &[PatternElem]) -> Vec<PatternElem> {
    let each = pattern.iter().flat_map(|part| match part {
        PatternElem::Char(character) => character.to_lowercase().map(PatternElem::Char).collect(),
        PatternElem::Wildcard => vec![PatternElem::Wildcard],
    });
    each.collect()
}

/// A pattern as Cedar writes it.
fn quoted(pattern: &[PatternElem]) -> String {
    let parts = pattern.iter().map(|part| match part {
        PatternElem::Char('*') => "\\*".to_owned(),
        PatternElem::Char(character) => character.escape_debug().to_string(),
        PatternElem::Wildcard => "*".to_owned(),
    });
    format!("\"{}\"", parts.collect::<String>())
}

/// The expression as `see` leaves the texts in it that environments are compared with.
fn walk(expr: &Arc<Expr>, see: &mut dyn FnMut(&mut Written)) -> Arc<Expr> {
    Arc::new(match &**expr {
        Expr::BinaryOp { op: op @ (BinaryOp::Eq | BinaryOp::NotEq), left, right }
            if is_environment(left) || is_environment(right) =>
        {
            Expr::BinaryOp { op: *op, left: compared(left, see), right: compared(right, see) }
        }
        Expr::BinaryOp { op: BinaryOp::Contains, left, right } if is_environment(right) => {
            Expr::BinaryOp { op: BinaryOp::Contains, left: compared(left, see), right: right.clone() }
        }
        Expr::BinaryOp { op: op @ (BinaryOp::ContainsAll | BinaryOp::ContainsAny), left, right }
            if holds_environment(left) || holds_environment(right) =>
        {
            Expr::BinaryOp { op: *op, left: compared(left, see), right: compared(right, see) }
        }
        Expr::Like { expr, pattern } if is_environment(expr) => {
            let mut written = Written::Pattern(pattern.clone());
            see(&mut written);
            let pattern = match written {
                Written::Pattern(pattern) => pattern,
                Written::Name(_) => pattern.clone(),
            };
            Expr::Like { expr: expr.clone(), pattern }
        }
        other => with_parts(other, |part| walk(part, see)),
    })
}

/// What an environment is compared with: a text, a set of them, or one of two by a condition.
fn compared(expr: &Arc<Expr>, see: &mut dyn FnMut(&mut Written)) -> Arc<Expr> {
    Arc::new(match &**expr {
        Expr::Literal(Literal::String(text)) if !text.is_empty() => {
            let mut written = Written::Name(text.to_string());
            see(&mut written);
            match written {
                Written::Name(name) => Expr::Literal(Literal::String(name.into())),
                Written::Pattern(_) => return expr.clone(),
            }
        }
        Expr::Set(items) => Expr::Set(items.iter().map(|item| compared(item, see)).collect()),
        Expr::IfThenElse { cond, then_expr, else_expr } => Expr::IfThenElse {
            cond: walk(cond, see),
            then_expr: compared(then_expr, see),
            else_expr: compared(else_expr, see),
        },
        _ => return walk(expr, see),
    })
}

fn holds_environment(expr: &Expr) -> bool {
    matches!(expr, Expr::Set(items) if items.iter().any(|item| is_environment(item)))
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
            ("context.environment like \"Prod*\"", "write `\"prod*\"`"),
            ("[\"Production\", \"eu\"].containsAny([context.environment])", "write `\"production\"`"),
            ("[context.environment].containsAll([\"Production\"])", "write `\"production\"`"),
            ("context.environment == (if context.hour > 3 then \"Production\" else \"eu\")", "write `\"production\"`"),
            ("if context.hour > 3 then context.environment == \"pr\u{43e}d\" else false", "U+043E"),
        ] {
            let found = faults(condition);
            assert!(
                found.len() == 1 && found[0].starts_with("line 2") && found[0].contains(part),
                "{condition}: {found:?}"
            );
        }
        let many = format!("[{}\"Production\"].contains(context.environment)", "\"eu\", ".repeat(1_000));
        assert!(faults(&many)[0].contains("write `\"production\"`"), "behind many that are right");
        for condition in [
            "context.environment == \"production\"",
            "context.environment == \"\"",
            "[\"staging\", \"prod\"].contains(context.environment)",
            "context.environment like \"prod*\"",
            "context.gateway.name == \"Production\"",
            "context.gateway.name like \"Prod*\"",
        ] {
            assert_eq!(faults(condition), [""; 0], "{condition}");
        }
    }
}
