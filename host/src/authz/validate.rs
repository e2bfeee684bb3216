//! Strict validation against the schema, with line and column of every fault.

use std::collections::HashSet;

use cedar_policy::{Policy, PolicyId, PolicySet, ValidationError, ValidationMode, ValidationResult, Validator, pst};

use super::{
    Action,
    attributes::Uses,
    index,
    reads::Reads,
    required::as_if_there,
    schema::Vocabulary,
    spelling::misspelt,
    text::{Bounds, Parsed, PolicyFault, Source, fault, located},
    tokens::find,
};

/// What can be said of a set that holds up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validated {
    /// How many policies it has.
    pub policies: usize,
    /// What is accepted and may still surprise.
    pub warnings: Vec<PolicyFault>,
}

/// A message at a byte of the text.
type Said = (usize, String);

/// Validates strictly. Only what a request brings along may be looked at: one step from the principal, the resource or
/// a gateway (Cedar's level 1), for nothing further is loaded when deciding.
///
/// An attribute or label used without a `has` guard is accepted with a warning: where it is absent the policy errs, and
/// an error denies. Nothing else that Cedar refuses is accepted.
///
/// Policies are checked one by one; between two of them `stop` is asked whether anybody still waits for the answer. Needs a
/// stack of [`super::text::STACK`] bytes.
///
/// # Errors
/// Every fault, in the order of the text, up to as many as are told.
pub(super) fn validate(
    vocabulary: &Vocabulary,
    text: &str,
    parsed: &Parsed,
    bounds: &Bounds,
    stop: &dyn Fn() -> bool,
) -> Result<Validated, Vec<PolicyFault>> {
    let mut uses = Uses::default();
    parsed.policies.iter().for_each(|policy| uses.policy(&policy.tree));
    affordable(vocabulary, text, parsed, &uses, bounds)?;
    let schema = |required| {
        let schema = vocabulary.schema(&uses.attributes, &uses.labels, required);
        schema.map(Validator::new).map_err(|error| vec![fault(text, 0, error.to_string())])
    };
    let mut checker = Checker {
        vocabulary,
        text,
        optional: schema(false)?,
        required: schema(true)?,
        placing: bounds.checks.saturating_mul(256),
    };
    let mut faults = hidden(text, parsed);
    faults.extend(misspelt(text, parsed, bounds.faults.saturating_sub(faults.len()).max(1), stop));
    let mut warnings = Vec::new();
    for source in &parsed.policies {
        if faults.len() > bounds.faults || stop() {
            break;
        }
        let at_fault = |error: &dyn std::fmt::Display| vec![fault(text, source.part.start, error.to_string())];
        match checker.check(source).map_err(|error| at_fault(&error))? {
            Ok(more) => warnings.extend(more),
            Err(more) => faults.extend(more),
        }
    }
    if faults.is_empty() {
        Ok(Validated { policies: parsed.policies.len(), warnings: told(text, warnings, bounds) })
    } else {
        Err(told(text, merged(faults), bounds))
    }
}

/// Refuses what would take too long to check.
fn affordable(
    vocabulary: &Vocabulary,
    text: &str,
    parsed: &Parsed,
    uses: &Uses,
    bounds: &Bounds,
) -> Result<(), Vec<PolicyFault>> {
    let mut all = 0u64;
    // Types of records are compared name by name.
    let wide = 1 + u64::try_from(uses.attributes.len().max(uses.labels.len())).unwrap_or(u64::MAX) / 64;
    for source in &parsed.policies {
        let requests = index::requests(vocabulary, &source.tree);
        all = all.saturating_add(source.checks.saturating_mul(requests).saturating_mul(wide));
        if all > bounds.checks {
            let message = format!(
                "the set takes more than {} checks (its expressions, each for every action and type of resource that its \
                 policy can match; an `if` within another doubles them): name the actions, or write simpler policies",
                bounds.checks
            );
            return Err(vec![fault(text, source.part.start, format!("at {}: {message}", source.name))]);
        }
    }
    Ok(())
}

/// In the order of the text, each once, with lines and columns.
fn told(text: &str, mut said: Vec<Said>, bounds: &Bounds) -> Vec<PolicyFault> {
    said.sort();
    said.dedup();
    said.truncate(bounds.faults);
    said.into_iter().map(|(offset, message)| fault(text, offset, message)).collect()
}

/// Checks one policy after the other.
struct Checker<'a> {
    vocabulary: &'a Vocabulary,
    text: &'a str,
    /// With each attribute and label optional.
    optional: Validator,
    /// With each of them there.
    required: Validator,
    /// What may still be spent on places: Cedar compares errors by the whole of the text that they are in.
    placing: u64,
}

impl Checker<'_> {
    /// Warnings of a policy, or its faults.
    fn check(&mut self, source: &Source) -> anyhow::Result<Result<Vec<Said>, Vec<Said>>> {
        // Without places at first: each error would be compared with others by the whole of the text.
        let plain = Policy::from_pst(pst::Policy::Static(source.tree.clone().try_into()?))?;
        let result = strictly(&self.optional, plain)?;
        if result.validation_errors().next().is_none() && result.validation_warnings().next().is_none() {
            return Ok(Ok(Vec::new()));
        }
        let part = self.text.get(source.part.clone()).unwrap_or_default();
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        let requests = index::requests(self.vocabulary, &source.tree);
        let placing = source.checks.saturating_mul(requests).saturating_mul(length);
        let (start, result) = if placing <= self.placing {
            self.placing -= placing;
            let placed = Policy::parse(Some(PolicyId::new("policy0")), part)?;
            (Some(source.part.start), strictly(&self.optional, placed)?)
        } else {
            (None, result)
        };
        let place = |(offset, message): Said| (start.map_or(source.part.start, |start| start + offset), message);
        let warnings = result.validation_warnings().map(|warning| place(located(warning, warning.to_string())));
        let mut warnings: Vec<_> = warnings.collect();
        let errors: Vec<_> = result.validation_errors().collect();
        if errors.is_empty() {
            return Ok(Ok(warnings));
        }
        // Whatever is still wrong where each attribute is there is no matter of a missing guard.
        let there = Policy::from_pst(pst::Policy::Static(as_if_there(&source.tree)?.try_into()?))?;
        let still = strictly(&self.required, there)?;
        let still: HashSet<_> = still.validation_errors().map(plain_words).collect();
        if still.is_empty() && errors.iter().any(|error| is_unguarded(error)) {
            warnings.extend(errors.iter().filter(|error| is_unguarded(error)).map(|error| place(unguarded(error))));
            return Ok(Ok(warnings));
        }
        let mut faults: Vec<_> = errors
            .iter()
            .filter(|error| still.contains(&plain_words(error)))
            .map(|error| place(refused(error)))
            .collect();
        if faults.is_empty() {
            faults.extend(errors.iter().filter(|error| !is_unguarded(error)).map(|error| place(refused(error))));
        }
        if faults.is_empty() {
            faults.extend(still.into_iter().map(|message| (source.part.start, message)));
        }
        Ok(Err(faults))
    }
}

fn strictly(validator: &Validator, policy: Policy) -> anyhow::Result<ValidationResult> {
    let set = PolicySet::from_policies([policy])?;
    Ok(validator.validate_with_level(&set, ValidationMode::Strict, LEVEL))
}

/// An error without the policy that it is of.
fn plain_words(error: &ValidationError) -> String {
    located(error, error.to_string()).1
}

fn is_unguarded(error: &ValidationError) -> bool {
    matches!(error, ValidationError::UnsafeOptionalAttributeAccess(_))
}

/// In the order of the text; what is missing from several types at one place is told once.
fn merged(mut faults: Vec<Said>) -> Vec<Said> {
    faults.sort();
    faults.dedup();
    let mut merged: Vec<Said> = Vec::with_capacity(faults.len());
    let mut types: Vec<String> = Vec::new();
    for (offset, message) in faults {
        let missing = missing(&message).map(|(attribute, of)| (attribute.to_owned(), of.to_owned()));
        if let (Some((attribute, of)), Some((last_offset, last))) = (missing, merged.last_mut())
            && offset == *last_offset
            && last.starts_with(&format!("attribute `{attribute}` "))
        {
            if types.is_empty() {
                types.extend(self::missing(last).map(|(_, first)| first.to_owned()));
            }
            types.push(of);
            let list = types.join("`, `");
            *last = format!(
                "attribute `{attribute}` not found on `{list}`; name the actions or the type this is about \
                 (`resource is Kaizen::Agent`), or guard it with `has`"
            );
            continue;
        }
        types.clear();
        merged.push((offset, message));
    }
    merged
}

/// Attribute and type of "attribute `nmae` on entity type `Kaizen::Agent` not found; …".
fn missing(message: &str) -> Option<(&str, &str)> {
    let (attribute, rest) = message.strip_prefix("attribute `")?.split_once("` on entity type `")?;
    let (of, rest) = rest.split_once('`')?;
    rest.starts_with(" not found").then_some((attribute, of))
}

/// How many steps from principal, resource and context a policy may look.
const LEVEL: u32 = 1;

/// One of Cedar's errors, in words that help here: for a misspelt action with the name that is nearest, which Cedar looks for
/// among other things; for a second step without the advice to allow more of them.
fn refused(error: &ValidationError) -> Said {
    let (offset, message) = located(error, error.to_string());
    let message = match error {
        ValidationError::UnrecognizedActionId(_) => {
            let wrong = message.split('"').nth(1).unwrap_or_default();
            let likeness = |action: &&Action| ordered(strsim::jaro_winkler(action.as_str(), wrong));
            let Some(nearest) = Action::ALL.iter().max_by_key(likeness) else { return (offset, message) };
            let told = message.split("; did you mean").next().unwrap_or_default();
            format!("{told}; did you mean `Kaizen::Action::\"{}\"`?", nearest.as_str())
        }
        ValidationError::EntityDerefLevelViolation(_) => {
            "this looks further than one step: of what `principal`, `resource` or `context` refer to, only `context.gateway` \
             can be looked into (compare it instead: `resource.owner == principal`)"
                .to_owned()
        }
        _ => message.replace("__cedar::internal::AnyEntity", "an entity"),
    };
    (offset, message)
}

/// A likeness from 0 to 1 as a number that can be compared.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1,000,000")]
fn ordered(likeness: f64) -> u32 {
    (likeness.clamp(0.0, 1.0) * 1e6) as u32
}

fn unguarded(error: &ValidationError) -> Said {
    // "unable to guarantee safety of access to optional attribute `attributes.clearance` on entity type `Kaizen::User`"
    let (offset, told) = located(error, error.to_string());
    // Without Cedar's own suggestion, which says the same less well.
    let told = told.split("; try testing").next().unwrap_or_default();
    let message = match told.split('`').collect::<Vec<_>>().as_slice() {
        [.., attribute, _, of, _] => format!(
            "`{attribute}` of a `{of}` may be absent, and a request is then denied with the reason `error`; \
             guard it: `… has {attribute} && …`"
        ),
        _ => told.to_owned(),
    };
    (offset, message)
}

/// What a person shows as the principal only. Nothing else has attributes of these names.
const HIDDEN: &[&str] = &["email", "attributes", "roles", "workspace_roles", "grants", "platform_administrator"];

/// Of other people only organization and name are loaded, which a schema with one type for both cannot say.
fn hidden(text: &str, parsed: &Parsed) -> Vec<Said> {
    let mut faults = Vec::new();
    for source in &parsed.policies {
        if let Some(attribute) = Reads::of(&source.tree).hidden.filter(|name| HIDDEN.contains(&name.as_str())) {
            let quoted = format!("{attribute:?}");
            let written: [&[&str]; 4] = [
                &["resource", ".", &attribute],
                &["resource", "[", &quoted, "]"],
                &["resource", "has", &attribute],
                &["resource", "in"],
            ];
            let found = written.iter().map(|tokens| find(text, &source.part, tokens));
            let at = found.into_iter().find(|at| *at > source.part.start).unwrap_or(source.part.start);
            let message =
                format!("`resource.{attribute}` is not visible: of another person only `organization` and `name` are");
            faults.push((at, format!("in {}: {message}", source.name)));
        }
    }
    faults
}
