//! The schema: which actions apply to what, and which group holds which actions.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema, SchemaFragment};
use serde_json::{Value, json};

use super::{Action, Kind, attributes::Types};
use crate::domain::role::Role;

/// As in `policies/schema.cedarschema`, for whoever wants to read it or check policies elsewhere.
pub const TEXT: &str = include_str!("../../../policies/schema.cedarschema");

/// The namespace that all names are in.
pub(super) const NAMESPACE: &str = "Kaizen";

/// What the schema says, in the shape that deciding needs it.
pub(super) struct Vocabulary {
    /// As JSON, for filling in the tenant's own attributes and labels.
    base: Value,
    action: EntityTypeName,
    role: EntityTypeName,
    kinds: HashMap<Kind, EntityTypeName>,
    applies: HashMap<Action, Vec<Kind>>,
    groups: BTreeMap<String, Vec<Action>>,
}

fn type_name(name: &str) -> anyhow::Result<EntityTypeName> {
    format!("{NAMESPACE}::{name}").parse().with_context(|| format!("entity type {name}"))
}

impl Vocabulary {
    /// Reads the embedded schema.
    ///
    /// # Errors
    /// If it does not hold up, or names other actions than [`Action`]: a defect.
    pub(super) fn load() -> anyhow::Result<Self> {
        let (fragment, _) = SchemaFragment::from_cedarschema_str(TEXT).context("policies/schema.cedarschema")?;
        let base = fragment.to_json_value()?;
        let schema = Schema::from_json_value(base.clone())?;
        let kinds = Kind::ALL.iter().map(|kind| Ok((*kind, type_name(kind.entity_type())?)));
        let kinds = kinds.collect::<anyhow::Result<HashMap<_, _>>>()?;
        let action_type = type_name("Action")?;
        let uid = |name: &str| EntityUid::from_type_name_and_id(action_type.clone(), EntityId::new(name));

        let mut applies = HashMap::new();
        for action in Action::ALL {
            let uid = uid(action.as_str());
            let resources = schema
                .resources_for_action(&uid)
                .with_context(|| format!("the schema does not declare {}", action.as_str()))?;
            let mut of = Vec::new();
            for resource in resources {
                let kind = kinds.iter().find(|(_, name)| *name == resource);
                of.push(*kind.with_context(|| format!("{resource} is not a Kind"))?.0);
            }
            of.sort();
            applies.insert(*action, of);
        }

        let hierarchy = schema.action_entities()?;
        let mut groups = BTreeMap::new();
        for declared in schema.actions() {
            let name = declared.id().unescaped();
            if Action::parse(name).is_some() {
                continue;
            }
            let held = |action: &&Action| hierarchy.is_ancestor_of(declared, &uid(action.as_str()));
            let members: Vec<_> = Action::ALL.iter().filter(held).copied().collect();
            if members.is_empty() {
                bail!("the schema declares {name}, which is neither an Action nor a group of some");
            }
            groups.insert(name.to_owned(), members);
        }
        Ok(Self { base, action: action_type.clone(), role: type_name("Role")?, kinds, applies, groups })
    }

    /// Whether the action is one that this kind of thing is acted on with.
    pub(super) fn applies(&self, action: Action, kind: Kind) -> bool {
        self.applies.get(&action).is_some_and(|kinds| kinds.contains(&kind))
    }

    /// Every action with each kind of thing it applies to.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (Action, Kind)> {
        self.applies.iter().flat_map(|(action, kinds)| kinds.iter().map(|kind| (*action, *kind)))
    }

    /// The groups and their actions.
    pub(super) fn groups(&self) -> &BTreeMap<String, Vec<Action>> {
        &self.groups
    }

    /// The actions meant by a name: one action, or those of a group.
    pub(super) fn actions(&self, name: &str) -> Vec<Action> {
        match Action::parse(name) {
            Some(action) => vec![action],
            None => self.groups.get(name).cloned().unwrap_or_default(),
        }
    }

    /// The schema with the attributes and labels that a policy set uses.
    ///
    /// # Errors
    /// If a name cannot stand in a schema.
    pub(super) fn schema(&self, attributes: &Types, labels: &Types, required: bool) -> anyhow::Result<Schema> {
        let mut filled = self.base.clone();
        for (name, types) in [("Attributes", attributes), ("Labels", labels)] {
            let place = filled.pointer_mut(&format!("/{NAMESPACE}/commonTypes/{name}"));
            *place.with_context(|| format!("the schema has no type {name}"))? =
                json!({"type": "Record", "attributes": types.to_schema(required)});
        }
        Ok(Schema::from_json_value(filled)?)
    }

    /// `Kaizen::Action::"agent.deploy"`.
    pub(super) fn action(&self, action: Action) -> EntityUid {
        self.action_named(action.as_str())
    }

    /// The same for a group.
    pub(super) fn action_named(&self, name: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.action.clone(), EntityId::new(name))
    }

    /// `Kaizen::Role::"developer"`.
    pub(super) fn role(&self, role: Role) -> EntityUid {
        EntityUid::from_type_name_and_id(self.role.clone(), EntityId::new(role.as_str()))
    }

    /// `Kaizen::Agent::"…"`; absent never, for every kind is in the map.
    pub(super) fn uid(&self, kind: Kind, id: uuid::Uuid) -> Option<EntityUid> {
        let mut text = uuid::Uuid::encode_buffer();
        let id = EntityId::new(id.hyphenated().encode_lower(&mut text));
        Some(EntityUid::from_type_name_and_id(self.kinds.get(&kind)?.clone(), id))
    }
}

/// Shared by everything that decides.
pub(super) type Shared = Arc<Vocabulary>;
