//! Strict validation against the schema, with line and column of every fault.

use std::collections::HashSet;

use cedar_policy::{PolicySet, ValidationError, ValidationMode, Validator};

use super::{
    Action,
    attributes::Uses,
    reads::Reads,
    schema::Vocabulary,
    spelling::misspelt,
    text::{Parsed, PolicyFault, deep, fault, from_diagnostic},
};

/// What can be said of a set that holds up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validated {
    /// How many policies it has.
    pub policies: usize,
    /// What is accepted and may still surprise.
    pub warnings: Vec<PolicyFault>,
}

/// Validates strictly. Only what a request brings along may be looked at: one step from the principal, the resource or
/// a gateway (Cedar's level 1), for nothing further is loaded when deciding.
///
/// An attribute or label used without a `has` guard is accepted with a warning: where it is absent the policy errs, and
/// an error denies.
///
/// # Errors
/// Every fault, in the order of the text.
pub(super) fn validate(vocabulary: &Vocabulary, text: &str, parsed: &Parsed) -> Result<Validated, Vec<PolicyFault>> {
    deep(|| strictly(vocabulary, text, parsed))?
}

fn strictly(vocabulary: &Vocabulary, text: &str, parsed: &Parsed) -> Result<Validated, Vec<PolicyFault>> {
    let mut uses = Uses::default();
    parsed.policies.iter().for_each(|policy| uses.policy(&policy.tree));
    let schema = |required| {
        vocabulary
            .schema(&uses.attributes, &uses.labels, required)
            .map_err(|error| vec![fault(text, 0, error.to_string())])
    };
    let mut faults = hidden(text, parsed);
    faults.extend(misspelt(text, parsed));
    let guarded = Validator::new(schema(false)?);
    let result = guarded.validate_with_level(&parsed.set, ValidationMode::Strict, LEVEL);
    let mut warnings: Vec<_> =
        result.validation_warnings().map(|warning| from_diagnostic(text, warning, warning.to_string())).collect();
    let errors: Vec<_> = result.validation_errors().collect();
    if !errors.is_empty() {
        // Once more, with every attribute taken to be there, for the policies that did not pass.
        let failed: HashSet<_> = errors.iter().map(|error| error.policy_id().clone()).collect();
        let again = parsed.policies.iter().filter(|p| failed.contains(p.policy.id())).map(|p| p.policy.clone());
        let again = PolicySet::from_policies(again).map_err(|error| vec![fault(text, 0, error.to_string())])?;
        let unguarded = Validator::new(schema(true)?);
        let result = unguarded.validate_with_level(&again, ValidationMode::Strict, LEVEL);
        let still: Vec<_> = result.validation_errors().collect();
        faults.extend(still.iter().map(|error| told(text, error)));
        if still.is_empty() {
            warnings.extend(errors.iter().map(|error| unguarded_warning(text, error)));
        }
    }
    if faults.is_empty() {
        warnings.sort_by_key(|fault| (fault.line, fault.column));
        Ok(Validated { policies: parsed.policies.len(), warnings })
    } else {
        Err(merged(faults))
    }
}

/// In the order of the text; what is missing from several types at one place is told once.
fn merged(mut faults: Vec<PolicyFault>) -> Vec<PolicyFault> {
    faults.sort_by(|a, b| (a.line, a.column, &a.message).cmp(&(b.line, b.column, &b.message)));
    faults.dedup();
    let mut merged: Vec<PolicyFault> = Vec::with_capacity(faults.len());
    let mut types: Vec<String> = Vec::new();
    for fault in faults {
        let missing = missing(&fault.message).map(|(attribute, of)| (attribute.to_owned(), of.to_owned()));
        if let (Some((attribute, of)), Some(last)) = (missing, merged.last_mut())
            && (last.line, last.column) == (fault.line, fault.column)
            && last.message.starts_with(&format!("attribute `{attribute}` "))
        {
            if types.is_empty() {
                types.extend(self::missing(&last.message).map(|(_, first)| first.to_owned()));
            }
            types.push(of);
            let list = types.join("`, `");
            last.message = format!(
                "attribute `{attribute}` not found on `{list}`; name the actions or the type this is about \
                 (`resource is Kaizen::Agent`), or guard it with `has`"
            );
            continue;
        }
        types.clear();
        merged.push(fault);
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

/// One of Cedar's errors; for a misspelt action with the name that is nearest, which Cedar looks for among other things.
fn told(text: &str, error: &ValidationError) -> PolicyFault {
    let fault = from_diagnostic(text, error, error.to_string());
    let ValidationError::UnrecognizedActionId(_) = error else { return fault };
    let wrong = fault.message.split('"').nth(1).unwrap_or_default();
    let likeness = |action: &&Action| ordered(strsim::jaro_winkler(action.as_str(), wrong));
    let Some(nearest) = Action::ALL.iter().max_by_key(likeness) else { return fault };
    let told = fault.message.split("; did you mean").next().unwrap_or_default();
    let message = format!("{told}; did you mean `Kaizen::Action::\"{}\"`?", nearest.as_str());
    PolicyFault { message, ..fault }
}

/// A likeness from 0 to 1 as a number that can be compared.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1,000,000")]
fn ordered(likeness: f64) -> u32 {
    (likeness.clamp(0.0, 1.0) * 1e6) as u32
}

fn unguarded_warning(text: &str, error: &ValidationError) -> PolicyFault {
    // "unable to guarantee safety of access to optional attribute `attributes.clearance` on entity type `Kaizen::User`"
    let told = error.to_string();
    let message = match told.split('`').collect::<Vec<_>>().as_slice() {
        [.., attribute, _, of, _] if matches!(error, ValidationError::UnsafeOptionalAttributeAccess(_)) => format!(
            "`{attribute}` of a `{of}` may be absent, and a request is then denied with the reason `error`; \
             guard it: `… has {attribute} && …`"
        ),
        _ => told.clone(),
    };
    let fault = from_diagnostic(text, error, message);
    // Without Cedar's own suggestion, which says the same less well.
    let message = fault.message.split("; try testing").next().unwrap_or_default().to_owned();
    PolicyFault { message, ..fault }
}

/// What a person shows as the principal only. Nothing else has attributes of these names.
const HIDDEN: &[&str] = &["email", "attributes", "roles", "workspace_roles", "grants", "platform_administrator"];

/// Of other people only organization and name are loaded, which a schema with one type for both cannot say.
fn hidden(text: &str, parsed: &Parsed) -> Vec<PolicyFault> {
    let mut faults = Vec::new();
    for source in &parsed.policies {
        if let Some(attribute) = Reads::of(&source.tree).hidden.filter(|name| HIDDEN.contains(&name.as_str())) {
            let at = text.find(&format!("resource.{attribute}")).unwrap_or_default();
            let message =
                format!("`resource.{attribute}` is not visible: of another person only `organization` and `name` are");
            faults.push(fault(text, at, format!("in {}: {message}", source.name)));
        }
    }
    faults
}
