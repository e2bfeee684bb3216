//! Reading a policy set's text, within bounds that keep whoever walks it safe.

use cedar_policy::{
    Effect, Policy, PolicySet,
    pst::{Clause, Expr, Template},
};
use miette::Diagnostic;

/// The longest policy set, bytes.
pub const MAX_TEXT: usize = 256 * 1024;
/// The most policies in one set.
pub const MAX_POLICIES: usize = 2000;

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
    pub(super) policy: Policy,
    /// The same as a syntax tree.
    pub(super) tree: Template,
}

/// A policy set that was read.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) set: PolicySet,
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

pub(super) fn from_diagnostic(text: &str, diagnostic: &dyn Diagnostic, message: String) -> PolicyFault {
    let offset = diagnostic.labels().and_then(|mut labels| labels.next()).map_or(0, |label| label.offset());
    let message = match diagnostic.help() {
        Some(help) => format!("{message}; {help}"),
        None => message,
    };
    fault(text, offset, unnumbered(message))
}

/// Nesting of brackets, and of conditions as Cedar sees them (`a && b && c` nests twice), at the most. Evaluation is
/// recursive, on the small stack of a request; a policy that needs more is better two.
const MAX_DEPTH: usize = 200;
/// `if`s within each other at the most: Cedar's type checker doubles the work with each.
const MAX_IFS: usize = 10;
/// Operators in one policy at the most: what a text can make the parser nest before the depth is known.
const MAX_OPERATORS: usize = 2000;
/// Enough for reading and validating anything within these bounds, in a debug build too.
const STACK: usize = 64 * 1024 * 1024;

/// Runs on a stack of [`STACK`] bytes, for whatever walks a tenant's text before its depth is known.
///
/// # Errors
/// If there is no memory for it, or the work panicked.
pub(super) fn deep<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Vec<PolicyFault>> {
    let failed = || vec![PolicyFault { line: 1, column: 1, message: "the policy set could not be processed".into() }];
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("policies".into()).stack_size(STACK).spawn_scoped(scope, work);
        thread.map_err(|_| failed())?.join().map_err(|_| failed())
    })
}

/// Refuses a text that could nest too deep to be read, by its characters alone.
fn shallow(text: &str) -> Result<(), Vec<PolicyFault>> {
    let (mut brackets, mut operators) = (0usize, 0usize);
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => {
                while let Some((_, inside)) = characters.next() {
                    match inside {
                        '\\' => drop(characters.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '/' if characters.peek().is_some_and(|(_, next)| *next == '/') => {
                while characters.next_if(|(_, inside)| *inside != '\n').is_some() {}
            }
            '(' | '[' | '{' => {
                brackets += 1;
                operators += 1;
            }
            ')' | ']' | '}' => brackets = brackets.saturating_sub(1),
            '&' | '|' | '!' | '+' | '-' | '*' | '.' | '<' | '>' | '?' => operators += 1,
            'i' | 'e' | 'h' | 'l' if ["if", "else", "has", "like"].iter().any(|word| starts_with(text, at, word)) => {
                operators += 1;
            }
            ';' if brackets == 0 => operators = 0,
            _ => {}
        }
        if brackets > MAX_DEPTH || operators > MAX_OPERATORS {
            let message = format!(
                "a policy may have at most {MAX_OPERATORS} operators and brackets, and {MAX_DEPTH} nested: write several"
            );
            return Err(vec![fault(text, at, message)]);
        }
    }
    Ok(())
}

fn starts_with(text: &str, at: usize, word: &str) -> bool {
    text.get(at..).is_some_and(|rest| rest.starts_with(word))
}

/// How an expression nests.
#[derive(Default, Clone, Copy)]
struct Nesting {
    all: usize,
    ifs: usize,
}

impl Nesting {
    fn max(self, other: Self) -> Self {
        Self { all: self.all.max(other.all), ifs: self.ifs.max(other.ifs) }
    }
}

fn nesting(expr: &Expr) -> Nesting {
    let of = |items: &mut dyn Iterator<Item = &Expr>| items.map(nesting).fold(Nesting::default(), Nesting::max);
    let mut inner = match expr {
        Expr::UnaryOp { expr, .. }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => nesting(expr),
        Expr::BinaryOp { left, right, .. } => nesting(left).max(nesting(right)),
        Expr::Is { expr, in_expr, .. } => of(&mut std::iter::once(&**expr).chain(in_expr.as_deref())),
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            let inner = nesting(cond).max(nesting(then_expr)).max(nesting(else_expr));
            Nesting { ifs: inner.ifs + 1, ..inner }
        }
        Expr::Set(items) => of(&mut items.iter().map(|item| &**item)),
        Expr::Record(fields) => of(&mut fields.values().map(|value| &**value)),
        _ => Nesting::default(),
    };
    inner.all += 1;
    inner
}

/// Reads a policy set, on a stack that is large enough, and hands it on if it is shallow.
///
/// # Errors
/// Every fault of its syntax, with line and column.
pub(super) fn parse(text: &str) -> Result<Parsed, Vec<PolicyFault>> {
    deep(|| read(text))?
}

/// Reads a policy set. Templates are not policies; two policies of one `@id` cannot be told apart.
fn read(text: &str) -> Result<Parsed, Vec<PolicyFault>> {
    if text.len() > MAX_TEXT {
        let message = format!("the text has {} bytes; at most {MAX_TEXT} are accepted: split the set", text.len());
        return Err(vec![fault(text, 0, message)]);
    }
    shallow(text)?;
    let set: PolicySet = text.parse().map_err(|errors: cedar_policy::ParseErrors| {
        errors.iter().map(|error| from_diagnostic(text, error, error.to_string())).collect::<Vec<_>>()
    })?;
    if set.num_of_templates() > 0 {
        let at = text.find("?principal").or_else(|| text.find("?resource")).unwrap_or_default();
        return Err(vec![fault(
            text,
            at,
            "templates (`?principal`, `?resource`) are not accepted; write the policy out".into(),
        )]);
    }
    let place =
        |policy: &Policy| policy.id().to_string().trim_start_matches("policy").parse::<usize>().unwrap_or(usize::MAX);
    let mut ordered: Vec<_> = set.policies().map(|policy| (place(policy), policy.clone())).collect();
    ordered.sort_by_key(|(place, _)| *place);
    if ordered.len() > MAX_POLICIES {
        return Err(vec![fault(text, 0, format!("{} policies; at most {MAX_POLICIES} are accepted", ordered.len()))]);
    }
    let mut names = std::collections::HashSet::new();
    let mut policies = Vec::with_capacity(ordered.len());
    for (place, policy) in ordered {
        let annotation = |key| policy.annotation(key).filter(|value| !value.is_empty()).map(str::to_owned);
        let given = annotation("id");
        if let Some(name) = &given
            && !names.insert(name.clone())
        {
            let quoted = format!("@id({name:?})");
            let at = text.rfind(&quoted).unwrap_or_default();
            return Err(vec![fault(
                text,
                at,
                format!("another policy is called `{name}` already; each `@id` is used once"),
            )]);
        }
        let tree = policy.to_pst().map_err(|error| vec![fault(text, 0, error.to_string())])?.body().clone();
        let clauses = tree.clauses().iter().map(|(Clause::When(expr) | Clause::Unless(expr))| nesting(expr));
        let nests = clauses.fold(Nesting::default(), Nesting::max);
        if tree.clauses().len() + nests.all > MAX_DEPTH || nests.ifs > MAX_IFS {
            let name = given.unwrap_or_else(|| format!("policy {}", place + 1));
            let message = format!(
                "{name} nests deeper than {MAX_DEPTH} (each `&&` of a chain counts), or than {MAX_IFS} `if`s: write several policies"
            );
            return Err(vec![fault(text, 0, message)]);
        }
        policies.push(Source {
            name: given.unwrap_or_else(|| format!("policy {}", place + 1)),
            description: annotation("description"),
            effect: policy.effect(),
            policy,
            tree,
        });
    }
    Ok(Parsed { set, policies })
}
