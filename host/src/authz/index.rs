//! A policy set ready for deciding: for each action and kind of resource, only the policies that can match it, grouped
//! by what else their scope asks, so that a decision costs what its own policies cost.
//!
//! A scope is settled here, exactly, and left out of what Cedar then evaluates. Beyond the scope, a condition that
//! begins with `principal in Kaizen::Role::"…"` or `resource.workspace == …` (which cannot err) is settled here as well:
//! where it is false, Cedar's `&&` would stop there too.

mod scope;

use std::{collections::HashMap, sync::Arc};

use cedar_policy::{
    Effect, Policy, PolicySet,
    pst::{self, ActionConstraint, Clause, EntityUID, PrincipalConstraint, ResourceConstraint, Template},
};
use uuid::Uuid;

use self::scope::{ResourceScope, Scope};
use super::{
    Action, Kind, Resource,
    kind::Roles,
    reads::{self, Reads, entity_type},
    schema::Vocabulary,
    spelling::respelled,
    text::Source,
};
use crate::domain::{principal::Principal, role::Role};

/// Whose policy it is: part of the server (`platform`), or of the organization's version in force (`tenant`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = PolicySource)]
pub enum Origin {
    /// Part of the server: `policies/platform/`.
    Platform,
    /// The tenant's own.
    Tenant,
}

/// What explanations tell of a policy.
#[derive(Debug, PartialEq, Eq)]
pub struct About {
    /// Its `@id`, or its place in the file.
    pub id: String,
    /// Whose it is.
    pub origin: Origin,
    /// Whether it permits; it forbids otherwise.
    pub permits: bool,
    /// Its `@description`.
    pub description: Option<String>,
    /// Where it is among the others of its set, from 0.
    pub place: usize,
    /// The line it begins at, from 1.
    pub line: usize,
    /// The column it begins at, from 1, in characters.
    pub column: usize,
}

/// Whom a policy can match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Anyone,
    Role(Role),
    User(Uuid),
    /// Members of an organization.
    Organization(Uuid),
}

/// What a policy can match, of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum What {
    Anything,
    Id(Uuid),
    Workspace(Uuid),
    Organization(Uuid),
}

/// All of it has to hold for a policy to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Guard {
    who: Who,
    /// From a condition.
    role: Option<Role>,
    what: What,
    /// From a condition.
    workspace: Option<Uuid>,
}

impl Guard {
    fn admits(&self, principal: &Principal, roles: Roles, resource: &Resource) -> bool {
        let who = match self.who {
            Who::Anyone => true,
            Who::Role(role) => roles.contains(role),
            Who::User(id) => principal.user_id.0 == id,
            Who::Organization(id) => principal.organization_id.0 == id,
        };
        let workspace = || resource.in_workspace().map(|workspace| workspace.0);
        who && self.role.is_none_or(|role| roles.contains(role))
            && match self.what {
                What::Anything => true,
                What::Id(id) => resource.id == id,
                What::Workspace(id) => workspace() == Some(id),
                What::Organization(id) => resource.organization.0 == id,
            }
            // Without a workspace the condition errs, which is Cedar's to say.
            && self.workspace.is_none_or(|id| workspace().is_none_or(|is| is == id))
    }
}

/// Policies of one guard.
#[derive(Clone)]
pub(super) struct Group {
    guard: Guard,
    pub(super) policies: Arc<PolicySet>,
    /// What their conditions look at.
    pub(super) reads: Arc<Reads>,
}

/// The policies for one action on one kind of resource.
#[derive(Default)]
pub(super) struct Entry {
    groups: Vec<Group>,
    /// What tells resources apart, guards included.
    pub(super) tells: Reads,
}

impl Entry {
    fn add(&mut self, group: Group) {
        self.tells.join(&group.reads);
        match group.guard.what {
            What::Anything => {}
            What::Id(id) => drop(self.tells.ids.insert(id)),
            What::Workspace(_) => self.tells.add(reads::R_WORKSPACE),
            What::Organization(_) => self.tells.add(reads::R_ORGANIZATION),
        }
        if group.guard.workspace.is_some() {
            self.tells.add(reads::R_WORKSPACE);
        }
        self.groups.push(group);
    }

    fn weight(&self) -> usize {
        size_of::<Self>() + self.groups.len() * size_of::<Group>() + self.tells.ids.len() * 2 * size_of::<Uuid>()
    }

    /// The groups that can match.
    pub(super) fn matching(
        &self,
        principal: &Principal,
        roles: Roles,
        resource: &Resource,
    ) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(move |group| group.guard.admits(principal, roles, resource))
    }
}

/// A compiled policy set.
pub(super) struct Index {
    entries: HashMap<(Action, Kind), Arc<Entry>>,
    about: HashMap<String, Arc<About>>,
    weight: usize,
}

/// Bytes that a policy takes besides its expressions, about: annotations, two maps, its scope.
const POLICY_WEIGHT: usize = 2048;
/// Bytes that an expression takes for each byte of its text, about: places, types and reference counts of each part.
const EXPRESSION_WEIGHT: usize = 40;

/// Policies of one scope.
struct Block {
    scope: Scope,
    policies: PolicySet,
    reads: Reads,
}

/// Lines and columns of places that come in order.
struct Lines<'a> {
    text: &'a str,
    seen: usize,
    line: usize,
    begins: usize,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, seen: 0, line: 1, begins: 0 }
    }

    fn at(&mut self, offset: usize) -> (usize, usize) {
        for (at, _) in self.text.get(self.seen..offset).unwrap_or_default().match_indices('\n') {
            self.line += 1;
            self.begins = self.seen + at + 1;
        }
        self.seen = self.seen.max(offset);
        (self.line, self.text.get(self.begins..offset).unwrap_or_default().chars().count() + 1)
    }
}

impl Index {
    /// Groups the policies. Each is held once, with those of the same scope, whatever the scope matches.
    ///
    /// # Errors
    /// If Cedar does not take a policy back: a defect.
    pub(super) fn compile(
        vocabulary: &Vocabulary,
        origin: Origin,
        text: &str,
        sources: &[Source],
    ) -> anyhow::Result<Self> {
        let mut about = HashMap::new();
        let mut blocks: Vec<Block> = Vec::new();
        let mut places: HashMap<Scope, usize> = HashMap::new();
        let mut weight = 0;
        let mut lines = Lines::of(text);
        for (place, source) in sources.iter().enumerate() {
            let id = place.to_string();
            let (line, column) = lines.at(source.part.start);
            let told = About {
                id: source.name.clone(),
                origin,
                permits: source.effect == Effect::Permit,
                description: source.description.clone(),
                place,
                line,
                column,
            };
            weight += POLICY_WEIGHT + EXPRESSION_WEIGHT * source.part.len();
            let policy = without_scope(source, &id)?;
            about.insert(id, Arc::new(told));
            let scope = Scope::of(vocabulary, &source.tree);
            let at = *places.entry(scope.clone()).or_insert_with(|| {
                blocks.push(Block { scope, policies: PolicySet::new(), reads: Reads::default() });
                blocks.len() - 1
            });
            if let Some(block) = blocks.get_mut(at) {
                block.reads.join(&Reads::of(&source.tree));
                block.policies.add(policy)?;
            }
        }
        let blocks = blocks.into_iter().map(|block| (block.scope, Arc::new(block.policies), Arc::new(block.reads)));
        let blocks: Vec<_> = blocks.collect();

        let mut entries = HashMap::new();
        let mut shared: HashMap<Vec<(usize, Guard)>, Arc<Entry>> = HashMap::new();
        for (action, kind) in vocabulary.pairs() {
            let admitted = blocks.iter().enumerate();
            let admitted = admitted.filter_map(|(at, (scope, ..))| Some((at, scope.guard(action, kind)?)));
            let admitted: Vec<_> = admitted.collect();
            let entry = match shared.get(&admitted) {
                Some(entry) => entry.clone(),
                None => {
                    let mut entry = Entry::default();
                    for (at, guard) in &admitted {
                        let Some((_, policies, reads)) = blocks.get(*at) else { continue };
                        entry.add(Group { guard: *guard, policies: policies.clone(), reads: reads.clone() });
                    }
                    weight += entry.weight();
                    let entry = Arc::new(entry);
                    shared.insert(admitted, entry.clone());
                    entry
                }
            };
            entries.insert((action, kind), entry);
        }
        Ok(Self { entries, about, weight })
    }

    /// About how many bytes it takes.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// The policies for an action on a kind of resource.
    pub(super) fn entry(&self, action: Action, kind: Kind) -> Option<&Entry> {
        self.entries.get(&(action, kind)).map(|entry| &**entry)
    }

    /// What explanations tell of a policy, by the id that Cedar reports.
    pub(super) fn about(&self, id: &cedar_policy::PolicyId) -> Option<&Arc<About>> {
        let id: &str = id.as_ref();
        self.about.get(id)
    }
}

/// A policy's conditions alone. Sets that were stored before environments had one spelling may say `"Production"`, which is
/// `production` now: a `forbid` goes on to apply.
fn without_scope(source: &Source, id: &str) -> anyhow::Result<Policy> {
    let tree = &source.tree;
    let mut rest =
        Template::new(id, tree.effect, PrincipalConstraint::Any, ActionConstraint::Any, ResourceConstraint::Any);
    for clause in tree.clauses() {
        rest.try_add_clause(match clause {
            Clause::When(expr) => Clause::When(respelled(expr)),
            Clause::Unless(expr) => Clause::Unless(respelled(expr)),
        })?;
    }
    Ok(Policy::from_pst(pst::Policy::Static(rest.try_into()?))?)
}

/// For how many actions and kinds of resource together Cedar checks a policy's conditions: it leaves out what the scope's types
/// and actions cannot match. An id that is none of ours, or a name that it does not know, leaves out nothing.
pub(super) fn requests(vocabulary: &Vocabulary, tree: &Template) -> u64 {
    let scope = Scope::of(vocabulary, tree);
    let named: &[EntityUID] = match &tree.action {
        ActionConstraint::Any => &[],
        ActionConstraint::Eq(uid) => std::slice::from_ref(uid),
        ActionConstraint::In(uids) => uids,
    };
    let ours = |uid: &EntityUID| entity_type(&uid.ty.0) == Some("Action") && !vocabulary.actions(&uid.eid).is_empty();
    let known = named.iter().all(ours);
    let of_action = |action: &Action| !known || scope.actions.as_ref().is_none_or(|actions| actions.contains(action));
    let of_kind = |kind: &Kind| match &scope.resource {
        ResourceScope::Is(kinds) | ResourceScope::In(_, Some(kinds)) if !kinds.is_empty() => kinds.contains(kind),
        ResourceScope::Eq(Some((one, _))) => one == kind,
        _ => true,
    };
    let matched = vocabulary.pairs().filter(|(action, kind)| of_action(action) && of_kind(kind)).count();
    u64::try_from(matched.max(1)).unwrap_or(u64::MAX)
}
