//! What a request brings along, in Cedar's terms: the principal, the resource and the context, each with as much as the
//! policies at hand look at.

use std::collections::HashSet;

use cedar_policy::{Context as CedarContext, Entities, Entity, EntityUid, Request, RestrictedExpression as Value};
use chrono::{DateTime, Datelike, SecondsFormat, Timelike, Utc, Weekday};

use super::{
    Action, Context, Kind, Resource,
    kind::Roles,
    reads::{self, Reads},
    schema::Vocabulary,
};
use crate::domain::{id::OrganizationId, principal::Principal};

/// Something that Cedar did not take; told in the decision, which then denies.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct BuildError(String);

fn failed(error: impl std::fmt::Display) -> BuildError {
    BuildError(error.to_string())
}

/// One question.
pub(super) struct Question<'a> {
    pub(super) principal: &'a Principal,
    pub(super) roles: Roles,
    pub(super) action: Action,
    pub(super) resource: &'a Resource,
    pub(super) context: &'a Context,
    pub(super) now: DateTime<Utc>,
}

type Attributes = Vec<(String, Value)>;

impl Question<'_> {
    /// The request and its entities.
    pub(super) fn build(&self, vocabulary: &Vocabulary, reads: &Reads) -> Result<(Request, Entities), BuildError> {
        let unknown = || failed("a kind without an entity type");
        let principal = vocabulary.uid(Kind::User, self.principal.user_id.0).ok_or_else(unknown)?;
        let resource = vocabulary.uid(self.resource.kind, self.resource.id).ok_or_else(unknown)?;

        let mut attributes = self.principal_attributes(vocabulary, reads)?;
        let mut parents: HashSet<_> = self.roles.iter().map(|role| vocabulary.role(role)).collect();
        parents.extend(vocabulary.uid(Kind::Organization, self.principal.organization_id.0));
        let mut entities = Vec::with_capacity(4);
        if principal == resource {
            // Oneself: one entity, which shows what it shows as a principal.
            let known: HashSet<_> = attributes.iter().map(|(name, _)| name.clone()).collect();
            let more = resource_attributes(vocabulary, self.resource, reads)?.into_iter();
            attributes.extend(more.filter(|(name, _)| !known.contains(name)));
        } else {
            entities.push(entity(vocabulary, self.resource, resource.clone(), reads)?);
        }
        entities.push(Entity::new(principal.clone(), attributes.into_iter().collect(), parents).map_err(failed)?);

        if reads.has(reads::ACTION) {
            entities.extend(self.actions(vocabulary));
        }
        let mut context = Attributes::new();
        if reads.has(reads::CONTEXT) {
            self.context(vocabulary, &mut context, &mut entities)?;
        }
        let context = CedarContext::from_pairs(context).map_err(failed)?;
        let request =
            Request::new(principal, vocabulary.action(self.action), resource, context, None).map_err(failed)?;
        let entities = Entities::from_entities(entities, None).map_err(failed)?;
        Ok((request, entities))
    }

    fn principal_attributes(&self, vocabulary: &Vocabulary, reads: &Reads) -> Result<Attributes, BuildError> {
        let principal = self.principal;
        let roles =
            |roles: Roles| Value::new_set(roles.iter().map(|role| Value::new_entity_uid(vocabulary.role(role))));
        let mut attributes = Attributes::new();
        if reads.has(reads::P_ORGANIZATION | reads::R_ORGANIZATION) {
            attributes.push(("organization".into(), organization(vocabulary, principal.organization_id)?));
        }
        if reads.has(reads::P_EMAIL) {
            attributes.push(("email".into(), Value::new_string(principal.email.clone())));
        }
        // Of oneself as the resource, this name is seen too.
        if reads.has(reads::P_NAME | reads::R_NAME) {
            attributes.push(("name".into(), Value::new_string(principal.name.clone())));
        }
        if reads.has(reads::P_ATTRIBUTES) {
            let fields =
                principal.attributes.iter().filter_map(|(name, value)| Some((name.clone(), from_json(value)?)));
            attributes.push(("attributes".into(), Value::new_record(fields).map_err(failed)?));
        }
        if reads.has(reads::P_ROLES) {
            attributes.push(("roles".into(), roles(Roles::everywhere(principal))));
        }
        if reads.has(reads::P_WORKSPACE_ROLES) {
            attributes.push(("workspace_roles".into(), roles(Roles::somewhere(principal))));
        }
        if reads.has(reads::P_GRANTS) {
            let grants = principal.grants.iter().filter_map(|grant| {
                let workspace = vocabulary.uid(Kind::Workspace, grant.workspace?.0)?;
                let role = Value::new_entity_uid(vocabulary.role(grant.role));
                let fields = [("role".to_owned(), role), ("workspace".to_owned(), Value::new_entity_uid(workspace))];
                Value::new_record(fields).ok()
            });
            attributes.push(("grants".into(), Value::new_set(grants)));
        }
        if reads.has(reads::P_ADMINISTRATOR) {
            attributes.push(("platform_administrator".into(), Value::new_bool(principal.platform_administrator)));
        }
        Ok(attributes)
    }

    /// The action and the groups it is in, for conditions that ask.
    fn actions(&self, vocabulary: &Vocabulary) -> Vec<Entity> {
        let groups = vocabulary.groups().iter().filter(|(_, members)| members.contains(&self.action));
        let parents = groups.map(|(name, _)| vocabulary.action_named(name)).collect();
        vec![Entity::new_no_attrs(vocabulary.action(self.action), parents)]
    }

    fn context(
        &self,
        vocabulary: &Vocabulary,
        context: &mut Attributes,
        entities: &mut Vec<Entity>,
    ) -> Result<(), BuildError> {
        context.push(("now".into(), Value::new_datetime(self.now.to_rfc3339_opts(SecondsFormat::Millis, true))));
        context.push(("weekday".into(), Value::new_string(weekday(self.now.weekday()).into())));
        context.push(("hour".into(), Value::new_long(i64::from(self.now.hour()))));
        if let Some(role) = self.context.role {
            context.push(("role".into(), Value::new_entity_uid(vocabulary.role(role))));
        }
        let of_gateway =
            || self.context.gateway.as_ref().map(|gateway| gateway.environment.clone().unwrap_or_default());
        if let Some(environment) = self.context.environment.clone().or_else(of_gateway) {
            context.push(("environment".into(), Value::new_string(environment)));
        }
        if let Some(gateway) = &self.context.gateway {
            let uid = vocabulary.uid(Kind::Gateway, gateway.id).ok_or_else(|| failed("gateway"))?;
            context.push(("gateway".into(), Value::new_entity_uid(uid.clone())));
            let mut whole = Reads::default();
            whole.add(reads::R_ORGANIZATION | reads::R_NAME | reads::R_ENVIRONMENT | reads::R_LABELS);
            if (gateway.kind, gateway.id) != (self.resource.kind, self.resource.id) {
                entities.push(entity(vocabulary, gateway, uid, &whole)?);
            }
        }
        Ok(())
    }
}

fn weekday(day: Weekday) -> &'static str {
    match day {
        Weekday::Mon => "monday",
        Weekday::Tue => "tuesday",
        Weekday::Wed => "wednesday",
        Weekday::Thu => "thursday",
        Weekday::Fri => "friday",
        Weekday::Sat => "saturday",
        Weekday::Sun => "sunday",
    }
}

fn organization(vocabulary: &Vocabulary, id: OrganizationId) -> Result<Value, BuildError> {
    vocabulary.uid(Kind::Organization, id.0).map(Value::new_entity_uid).ok_or_else(|| failed("organization"))
}

fn entity(vocabulary: &Vocabulary, resource: &Resource, uid: EntityUid, reads: &Reads) -> Result<Entity, BuildError> {
    let attributes = resource_attributes(vocabulary, resource, reads)?;
    // A thing is not in itself: an organization and a workspace name themselves.
    let workspace = resource.in_workspace().and_then(|workspace| vocabulary.uid(Kind::Workspace, workspace.0));
    let organization = vocabulary.uid(Kind::Organization, resource.organization.0);
    let parents = workspace.into_iter().chain(organization).filter(|parent| *parent != uid).collect::<Vec<_>>();
    let tags: Attributes = if reads.has(reads::R_LABELS) && matches!(resource.kind, Kind::Agent | Kind::Gateway) {
        resource.labels.iter().map(|(name, value)| (name.clone(), Value::new_string(value.clone()))).collect()
    } else {
        Vec::new()
    };
    Entity::new_with_tags(uid, attributes, parents, tags).map_err(failed)
}

fn resource_attributes(vocabulary: &Vocabulary, resource: &Resource, reads: &Reads) -> Result<Attributes, BuildError> {
    let mut attributes = Attributes::new();
    if reads.has(reads::P_ORGANIZATION | reads::R_ORGANIZATION) {
        attributes.push(("organization".into(), organization(vocabulary, resource.organization)?));
    }
    if reads.has(reads::R_WORKSPACE)
        && let Some(workspace) = resource.in_workspace().and_then(|id| vocabulary.uid(Kind::Workspace, id.0))
    {
        attributes.push(("workspace".into(), Value::new_entity_uid(workspace)));
    }
    if reads.has(reads::R_NAME) && resource.kind != Kind::Organization {
        attributes.push(("name".into(), Value::new_string(resource.name.clone())));
    }
    if reads.has(reads::R_ENVIRONMENT) && matches!(resource.kind, Kind::Gateway | Kind::Deployment) {
        attributes.push(("environment".into(), Value::new_string(resource.environment.clone().unwrap_or_default())));
    }
    if reads.has(reads::R_LABELS) && matches!(resource.kind, Kind::Agent | Kind::Gateway) {
        let labels = resource.labels.iter().map(|(name, value)| (name.clone(), Value::new_string(value.clone())));
        attributes.push(("labels".into(), Value::new_record(labels).map_err(failed)?));
    }
    if reads.has(reads::R_OWNER | reads::R_OWN)
        && let Some(owner) = resource.owner.and_then(|owner| vocabulary.uid(Kind::User, owner.0))
    {
        attributes.push(("owner".into(), Value::new_entity_uid(owner)));
    }
    Ok(attributes)
}

/// Strings, whole numbers, booleans and lists of them; anything else is absent for policies.
fn from_json(value: &serde_json::Value) -> Option<Value> {
    use serde_json::Value as Json;
    match value {
        Json::String(text) => Some(Value::new_string(text.clone())),
        Json::Bool(value) => Some(Value::new_bool(*value)),
        #[expect(clippy::cast_possible_truncation, reason = "only where it is a whole number within i64's exact range")]
        Json::Number(number) => number
            .as_i64()
            .or_else(|| number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15).map(|n| n as i64))
            .map(Value::new_long),
        Json::Array(items) => {
            let scalar = |item: &Json| (!item.is_array()).then(|| from_json(item)).flatten();
            items.iter().map(scalar).collect::<Option<Vec<_>>>().map(Value::new_set)
        }
        Json::Null | Json::Object(_) => None,
    }
}
