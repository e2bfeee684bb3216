//! Reading a policy set's text, within bounds that keep whoever walks it safe.

use std::{collections::HashSet, ops::Range};

use cedar_policy::{
    Effect, Policy, PolicySet,
    pst::{Clause, Expr, Template},
};
use miette::Diagnostic;

use super::tokens::{Tokens, find};
use crate::config::limits::ServerLimits;

/// What a policy set that is written may take. One that is in force was accepted before, and is served whatever they are.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of the text.
    pub text_bytes: usize,
    /// Policies.
    pub policies: usize,
    /// Elements of lists and records in one policy: its commas.
    pub elements: usize,
    /// Bytes of one string or name.
    pub string_bytes: usize,
    /// Expressions checked in all, each for every action and kind of resource that its policy can match.
    pub checks: u64,
    /// Faults and warnings told.
    pub faults: usize,
}

impl Bounds {
    /// As this server is set.
    pub fn of(limits: &ServerLimits) -> Self {
        Self {
            text_bytes: limits.policy_text_kib * 1024,
            policies: limits.policies_per_set,
            elements: limits.policy_elements,
            string_bytes: limits.policy_string_bytes,
            checks: limits.policy_checks,
            faults: limits.policy_faults,
        }
    }
}

/// One fault of a policy set's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFault {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong, and what to write.
    pub message: String,
}

impl std::fmt::Display for PolicyFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// Cedar names policies by their place in the file, which line and column say better.
fn unnumbered(mut message: String) -> String {
    const BEFORE: &str = "for policy `policy";
    while let Some(start) = message.find(BEFORE) {
        let rest = message.get(start + BEFORE.len()..).unwrap_or_default();
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let Some(after) = digits.strip_prefix("`, ").or_else(|| digits.strip_prefix("`: ")) else { break };
        let end = message.len() - after.len();
        message.replace_range(start..end, "");
    }
    message
}

/// One policy of a set.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Its `@id`, or its place in the file.
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) effect: Effect,
    /// As Cedar holds it: what tests compare the index with.
    #[cfg(test)]
    pub(super) policy: Policy,
    /// As a syntax tree.
    pub(super) tree: Template,
    /// Where it is in the text, bytes.
    pub(super) part: Range<usize>,
    /// Expressions that checking it for one kind of request takes.
    pub(super) checks: u64,
}

/// A policy set that was read.
#[derive(Debug)]
pub(super) struct Parsed {
    /// In the order of the text.
    pub(super) policies: Vec<Source>,
}

/// Line and column of a byte offset.
pub(super) fn fault(text: &str, offset: usize, message: String) -> PolicyFault {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    PolicyFault {
        line: before.matches('\n').count() + 1,
        column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
        message,
    }
}

/// Where something is that Cedar says, and its text with what it suggests.
pub(super) fn located(diagnostic: &dyn Diagnostic, message: String) -> (usize, String) {
    let offset = diagnostic.labels().and_then(|mut labels| labels.next()).map_or(0, |label| label.offset());
    let message = match diagnostic.help() {
        Some(help) => format!("{message}; {help}"),
        None => message,
    };
    (offset, unnumbered(message))
}

/// Nesting of brackets, and of conditions as Cedar sees them (`a && b && c` nests twice), at the most. Evaluation is
/// recursive, on the small stack of a request; a policy that needs more is better two.
const MAX_DEPTH: usize = 200;
/// Operators in one policy at the most: what a text can make the parser nest before the depth is known.
const MAX_OPERATORS: usize = 2000;
/// Enough for reading and validating anything within these bounds, in a debug build too.
pub(super) const STACK: usize = 64 * 1024 * 1024;

/// Runs on a stack of [`STACK`] bytes, for whatever walks a text before its depth is known, and waits for it. A server does
/// not wait: see [`super::workers`].
///
/// # Errors
/// If there is no thread to be had, or the work panicked.
pub(super) fn deep<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("policies".into()).stack_size(STACK).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| std::io::Error::other("reading policies panicked"))
    })
}

/// Refuses a text that could nest too deep to be read, or is over the bounds, by its tokens alone. Returns where each
/// policy begins and ends.
fn shallow(text: &str, bounds: Option<&Bounds>) -> Result<Vec<Range<usize>>, PolicyFault> {
    let (mut brackets, mut operators, mut elements) = (0usize, 0usize, 0usize);
    let mut parts = Vec::new();
    let mut begin = None;
    for token in Tokens::of(text) {
        let start = *begin.get_or_insert(token.at);
        match token.text {
            "(" | "[" | "{" => {
                brackets += 1;
                operators += 1;
            }
            ")" | "]" | "}" => brackets = brackets.saturating_sub(1),
            "&" | "|" | "!" | "+" | "-" | "*" | "." | "<" | ">" | "if" | "else" | "has" | "like" => operators += 1,
            "," => elements += 1,
            ";" if brackets == 0 => {
                parts.push(start..token.at + 1);
                (operators, elements, begin) = (0, 0, None);
            }
            "?principal" | "?resource" => {
                let message = "templates (`?principal`, `?resource`) are not accepted; write the policy out";
                return Err(fault(text, token.at, message.into()));
            }
            _ => {}
        }
        if brackets > MAX_DEPTH || operators > MAX_OPERATORS {
            let message = format!(
                "a policy may have at most {MAX_OPERATORS} operators and brackets, and {MAX_DEPTH} nested: write several"
            );
            return Err(fault(text, token.at, message));
        }
        let Some(bounds) = bounds else { continue };
        if elements > bounds.elements {
            let message = format!("a policy may have at most {} elements in its lists: write several", bounds.elements);
            return Err(fault(text, token.at, message));
        }
        if token.text.len() > bounds.string_bytes {
            let message = format!("a string or name may have at most {} bytes", bounds.string_bytes);
            return Err(fault(text, token.at, message));
        }
        if parts.len() > bounds.policies {
            let message = format!("at most {} policies are accepted in a set", bounds.policies);
            return Err(fault(text, start, message));
        }
    }
    Ok(parts)
}

/// What it takes to walk an expression.
#[derive(Default, Clone, Copy)]
struct Measure {
    /// How it nests.
    depth: usize,
    /// How many expressions it has.
    size: u64,
    /// How many of them Cedar's type checker looks at: it takes one side of an `if` whose condition is known in place of
    /// the other, too, and copies the type of a list or record with each that is around it.
    checks: u64,
}

impl Measure {
    fn and(self, other: Self) -> Self {
        Self {
            depth: self.depth.max(other.depth),
            size: self.size.saturating_add(other.size),
            checks: self.checks.saturating_add(other.checks),
        }
    }

    fn of<'a>(exprs: impl IntoIterator<Item = &'a Expr>) -> Self {
        exprs.into_iter().map(measure).fold(Self::default(), Self::and)
    }
}

fn measure(expr: &Expr) -> Measure {
    let mut inner = match expr {
        Expr::UnaryOp { expr, .. } | Expr::GetAttr { expr, .. } | Expr::Like { expr, .. } => measure(expr),
        // `x has a.b.c` is `x has a && x.a has b && x.a.b has c`.
        Expr::HasAttr { expr, attrs } => {
            let inner = measure(expr);
            let steps = u64::try_from(attrs.len()).unwrap_or(u64::MAX);
            let checks = inner.checks.saturating_add(steps).saturating_mul(steps);
            Measure { depth: inner.depth + attrs.len(), size: inner.size.saturating_add(steps), checks }
        }
        Expr::BinaryOp { left, right, .. } => Measure::of([&**left, &**right]),
        Expr::Is { expr, in_expr, .. } => Measure::of(std::iter::once(&**expr).chain(in_expr.as_deref())),
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            let (then, other) = (measure(then_expr), measure(else_expr));
            let twice = then.checks.max(other.checks).saturating_mul(2);
            Measure { checks: twice, ..then.and(other) }.and(measure(cond))
        }
        Expr::Set(items) => copied(Measure::of(items.iter().map(|item| &**item))),
        Expr::Record(fields) => copied(Measure::of(fields.values().map(|value| &**value))),
        _ => Measure::default(),
    };
    inner.depth += 1;
    inner.size = inner.size.saturating_add(1);
    inner.checks = inner.checks.saturating_add(1);
    inner
}

fn copied(inner: Measure) -> Measure {
    Measure { checks: inner.checks.saturating_add(inner.size), ..inner }
}

/// Reads a policy set and hands it on if it is shallow. Templates are not policies; two policies of one `@id` cannot be told
/// apart. Needs a stack of [`STACK`] bytes.
///
/// # Errors
/// Every fault of its syntax, with line and column; for a text that is being written, what is over the bounds.
pub(super) fn read(text: &str, bounds: Option<&Bounds>) -> Result<Parsed, Vec<PolicyFault>> {
    if let Some(bounds) = bounds
        && text.len() > bounds.text_bytes
    {
        let most = bounds.text_bytes;
        let message = format!("the text has {} bytes; at most {most} are accepted: split the set", text.len());
        return Err(vec![fault(text, 0, message)]);
    }
    let parts = shallow(text, bounds).map_err(|fault| vec![fault])?;
    let set: PolicySet = text.parse().map_err(|errors: cedar_policy::ParseErrors| {
        let mut faults: Vec<_> = errors.iter().map(|error| located(error, error.to_string())).collect();
        faults.sort();
        faults.truncate(bounds.map_or(1, |bounds| bounds.faults));
        faults.into_iter().map(|(offset, message)| fault(text, offset, message)).collect::<Vec<_>>()
    })?;
    let place =
        |policy: &Policy| policy.id().to_string().trim_start_matches("policy").parse::<usize>().unwrap_or(usize::MAX);
    let mut ordered: Vec<_> = set.policies().map(|policy| (place(policy), policy.clone())).collect();
    ordered.sort_by_key(|(place, _)| *place);
    let mut names = HashSet::new();
    let mut policies = Vec::with_capacity(ordered.len());
    for (place, policy) in ordered {
        let part = parts.get(place).cloned().unwrap_or(0..text.len());
        let annotation = |key| policy.annotation(key).filter(|value| !value.is_empty()).map(str::to_owned);
        let given = annotation("id");
        if let Some(name) = &given
            && !names.insert(name.clone())
        {
            let at = find(text, &part, &["@", "id"]);
            let message = format!("another policy is called `{name}` already; each `@id` is used once");
            return Err(vec![fault(text, at, message)]);
        }
        let name = given.unwrap_or_else(|| format!("policy {}", place + 1));
        let tree = policy.to_pst().map_err(|error| vec![fault(text, part.start, error.to_string())])?.body().clone();
        let clauses = tree.clauses().iter().map(|(Clause::When(expr) | Clause::Unless(expr))| measure(expr));
        let measure = clauses.fold(Measure::default(), Measure::and);
        if tree.clauses().len() + measure.depth > MAX_DEPTH {
            let message =
                format!("{name} nests deeper than {MAX_DEPTH} (each `&&` of a chain counts): write several policies");
            return Err(vec![fault(text, part.start, message)]);
        }
        policies.push(Source {
            name,
            description: annotation("description"),
            effect: policy.effect(),
            #[cfg(test)]
            policy,
            tree,
            part,
            checks: measure.checks.saturating_add(1),
        });
    }
    Ok(Parsed { policies })
}
