//! `/api/v1/authz`: what the caller may do, and why.

mod body;

use std::{collections::HashMap, sync::Arc};

use axum::{Json, extract::State};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

pub use self::body::DecisionBody;
use self::body::{Asked, DecisionList, Decisions, Question, QuestionContext, QuestionList, Questions, ReasonBody};
use super::{
    deployments::{Destination, NoEnvironment, environment_asked, removal},
    extract::{Caller, Input},
    page::Item,
    problem::{Problem, Result},
    users::{self, Property},
};
use crate::{
    app::App,
    authz::{Action, Context, Kind, Resource},
    domain::{
        agent::Agent,
        connection,
        deployment::{Deployment, DeploymentState},
        fault::Fault,
        principal::Principal,
        role::Role,
        user::{Membership, User},
    },
    store::{
        self, agents,
        connections::{self, Connection},
        deployments, memberships, policies, workspaces,
    },
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(check_authorization))
}

/// Ask what the caller may do
///
/// Decides one question or several for the caller, from current data, as the routes would that do it, some of which ask more than
/// one action: rolling back takes `agent.deploy` as well. Says why, and which policies decided. Takes no permission, changes
/// nothing and is not recorded.
#[utoipa::path(post, path = "/api/v1/authz/check", tag = "Policies", request_body = Asked,
    responses((status = OK, description = "The decision; of several questions, the decisions in their order.", body = Decisions)),
    extensions(("x-problems" = json!(["conflict", "-denied"]))))]
async fn check_authorization(
    State(app): State<App>,
    Caller(caller): Caller,
    input: Input<Questions>,
) -> Result<Json<Decisions>> {
    Ok(Json(match input.body.asked()? {
        Asked::One(question) => Decisions::One(Asking::new(&app, &caller).answer(&question, "").await?),
        Asked::Many(QuestionList { checks }) => Decisions::Many(many(&app, &caller, &checks).await?),
    }))
}

async fn many(app: &App, caller: &Principal, checks: &[Question]) -> Result<DecisionList> {
    let most = app.config.limits.authz_check_questions;
    if checks.len() > most {
        return Err(Problem::invalid(vec![Fault::new("/checks", format!("at most {most} questions"))]));
    }
    let mut asking = Asking::new(app, caller);
    let mut decisions = Vec::with_capacity(checks.len());
    for (place, question) in checks.iter().enumerate() {
        decisions.push(asking.answer(question, &format!("/checks/{place}")).await?);
    }
    Ok(DecisionList { decisions })
}

/// A thing of the caller's organization that questions are about.
enum Thing {
    Agent(Agent),
    Gateway(Connection),
    Deployment(Deployment),
    Membership(Membership),
    /// With whether they are an owner.
    User(User, bool),
    Other(Resource),
}

impl Thing {
    fn resource(&self) -> Resource {
        match self {
            Self::Agent(agent) => agent.resource(),
            Self::Gateway(gateway) => gateway.resource(),
            Self::Deployment(deployment) => deployment.resource(),
            Self::Membership(membership) => membership.resource(),
            Self::User(user, _) => user.resource(),
            Self::Other(resource) => resource.clone(),
        }
    }
}

/// One thing that policies are asked.
type Ask = (Action, Resource, Context);

/// What stands in the way before policies are asked.
enum Obstacle {
    NotFound(Kind),
    /// The route would refuse it, whatever policies say.
    Refused(String),
}

/// The questions of one request. Each thing is read once.
struct Asking<'a> {
    app: &'a App,
    caller: &'a Principal,
    things: HashMap<(Kind, Uuid), Option<Arc<Thing>>>,
}

impl<'a> Asking<'a> {
    fn new(app: &'a App, caller: &'a Principal) -> Self {
        Self { app, caller, things: HashMap::new() }
    }

    async fn answer(&mut self, question: &Question, pointer: &str) -> Result<DecisionBody> {
        let fault =
            |place: &str, message: String| Problem::invalid(vec![Fault::new(format!("{pointer}{place}"), message)]);
        let action = Action::parse(&question.action);
        let action = action.ok_or_else(|| fault("/action", format!("there is no action `{}`", question.action)))?;
        let kind = Kind::ALL.iter().copied().find(|kind| kind.as_str() == question.resource.kind);
        let kind =
            kind.ok_or_else(|| fault("/resource/type", format!("there is no type `{}`", question.resource.kind)))?;
        if !self.app.authz.applies(action, kind) {
            let message = format!("`{}` is not asked of a thing of type `{}`", question.action, question.resource.kind);
            return Err(fault("/resource/type", message));
        }
        let Some(thing) = self.thing(kind, question.resource.id).await? else { return Ok(not_found(kind)) };
        let asks = match self.asks(action, &thing, &question.context, pointer).await? {
            Ok(asks) => asks,
            Err(Obstacle::NotFound(kind)) => return Ok(not_found(kind)),
            Err(Obstacle::Refused(why)) => return Ok(refused(why, ReasonBody::Error)),
        };
        let mut answer = DecisionBody {
            allowed: true,
            reason: ReasonBody::Allowed,
            message: "Everyone may change this of themselves.".to_owned(),
            policies: Vec::new(),
        };
        for (action, resource, context) in asks {
            let decision = self.app.authz.check(&self.app.store, self.caller, action, &resource, &context).await?;
            // Of a hundred questions against a large set, others' requests come in between.
            tokio::task::yield_now().await;
            answer = DecisionBody {
                allowed: decision.allowed,
                reason: decision.reason.into(),
                message: decision.sentence(),
                policies: decision.named(),
            };
            if !answer.allowed {
                break;
            }
        }
        match (&*thing, action) {
            (Thing::User(user, _), Action::UserUpdate | Action::UserDelete) if answer.allowed => {
                let mut out_of_reach = users::out_of_reach(self.caller, user);
                let properties = question.context.properties.as_ref();
                if out_of_reach.is_none()
                    && action == Action::UserUpdate
                    && properties.is_some_and(|wanted| wanted.contains(&Property::Password))
                {
                    out_of_reach = users::password_out_of_reach(self.app, self.caller, user).await?;
                }
                Ok(out_of_reach.map_or(answer, |why| refused(why.to_owned(), ReasonBody::Forbidden)))
            }
            _ => Ok(answer),
        }
    }

    /// What the route asks, in its order.
    async fn asks(
        &mut self,
        action: Action,
        thing: &Thing,
        context: &QuestionContext,
        pointer: &str,
    ) -> Result<std::result::Result<Vec<Ask>, Obstacle>> {
        let plain = (action, thing.resource(), Context::default());
        let about = |role: Option<Role>| (action, thing.resource(), Context { role, ..Context::default() });
        Ok(Ok(match (action, thing) {
            (Action::AgentDeploy, Thing::Agent(agent)) => {
                let environment = context.environment.as_deref();
                let at = |fault: NoEnvironment| fault.at(&format!("{pointer}/context/environment"));
                let Some(gateway) = context.gateway_id else {
                    let environment = environment.map(|asked| environment_asked(asked).map_err(at)).transpose()?;
                    return Ok(Ok(vec![(action, agent.resource(), Context { environment, ..Context::default() })]));
                };
                match self.thing(Kind::Gateway, gateway).await?.as_deref() {
                    Some(Thing::Gateway(gateway)) => {
                        vec![Destination::new(agent.clone(), gateway.clone(), environment).map_err(at)?.question()]
                    }
                    _ => return Ok(Err(Obstacle::NotFound(Kind::Gateway))),
                }
            }
            (Action::DeploymentRollback, Thing::Deployment(deployment)) => match self.deploying(deployment).await? {
                Ok(deploying) => vec![plain, deploying],
                Err(obstacle) => return Ok(Err(obstacle)),
            },
            (Action::JobRetry, Thing::Deployment(deployment)) => match deployment.status {
                DeploymentState::Stopping | DeploymentState::Stopped | DeploymentState::Cancelled => {
                    vec![plain, (removal(deployment), deployment.resource(), Context::default())]
                }
                _ => match self.deploying(deployment).await? {
                    Ok(deploying) => vec![plain, deploying],
                    Err(obstacle) => return Ok(Err(obstacle)),
                },
            },
            (Action::JobCancel, Thing::Deployment(deployment)) => {
                vec![plain, (Action::DeploymentCancel, deployment.resource(), Context::default())]
            }
            (Action::MembershipUpdate, Thing::Membership(membership)) => {
                let roles = [Some(membership.role), context.role];
                roles.into_iter().flatten().map(|role| about(Some(role))).collect()
            }
            (Action::MembershipDelete, Thing::Membership(membership)) => vec![about(Some(membership.role))],
            (Action::UserUpdate, Thing::User(user, _))
                if context.properties.as_ref().is_some_and(|wanted| users::own_matters(self.caller, user, wanted)) =>
            {
                Vec::new()
            }
            (Action::UserUpdate | Action::UserDelete, Thing::User(_, owner)) => {
                vec![about(owner.then_some(Role::Owner))]
            }
            _ => vec![about(context.role)],
        }))
    }

    /// Whether a deployment may be brought to its gateway again.
    async fn deploying(&mut self, this: &Deployment) -> Result<std::result::Result<Ask, Obstacle>> {
        let agent = self.thing(Kind::Agent, this.agent_id.0).await?;
        let gateway = self.thing(Kind::Gateway, this.gateway_id.0).await?;
        let (Some(Thing::Agent(agent)), Some(Thing::Gateway(gateway))) = (agent.as_deref(), gateway.as_deref()) else {
            return Ok(Err(Obstacle::NotFound(Kind::Deployment)));
        };
        Ok(match Destination::again(agent.clone(), gateway.clone(), this) {
            Ok(to) => Ok(to.question()),
            Err(why) => Err(Obstacle::Refused(why)),
        })
    }

    /// The thing, if it is the caller's organization's.
    async fn thing(&mut self, kind: Kind, id: Uuid) -> Result<Option<Arc<Thing>>> {
        if let Some(known) = self.things.get(&(kind, id)) {
            return Ok(known.clone());
        }
        let found = self.find(kind, id).await?.map(Arc::new);
        self.things.insert((kind, id), found.clone());
        Ok(found)
    }

    async fn find(&self, kind: Kind, id: Uuid) -> Result<Option<Thing>> {
        let organization = self.caller.organization_id;
        if kind == Kind::Organization {
            return Ok((organization.0 == id).then(|| Thing::Other(Resource::organization(organization))));
        }
        let conn = &mut self.app.store.read().await?;
        Ok(match kind {
            Kind::Organization => None,
            Kind::User => match store::users::get(conn, organization, id.into()).await? {
                Some(user) => {
                    let owner = memberships::is_owner(conn, organization, user.id).await?;
                    Some(Thing::User(user, owner))
                }
                None => None,
            },
            Kind::Membership => memberships::get(conn, organization, id.into()).await?.map(Thing::Membership),
            Kind::Workspace => workspaces::get(conn, organization, id.into()).await?.map(other),
            Kind::Agent => agents::get(conn, organization, id.into()).await?.map(Thing::Agent),
            Kind::PolicySet => policies::get(conn, organization, id.into()).await?.map(other),
            Kind::Gateway => {
                let found = connections::get(conn, organization, connection::Kind::DeploymentTarget, id).await?;
                found.map(Thing::Gateway)
            }
            Kind::AuditSink => connections::get(conn, organization, connection::Kind::AuditSink, id).await?.map(other),
            Kind::IdentityConnection => {
                connections::get(conn, organization, connection::Kind::IdentityProvider, id).await?.map(other)
            }
            Kind::Deployment => deployments::get(conn, organization, id.into()).await?.map(Thing::Deployment),
        })
    }
}

fn other(item: impl Item) -> Thing {
    Thing::Other(item.resource())
}

fn refused(message: String, reason: ReasonBody) -> DecisionBody {
    DecisionBody { allowed: false, reason, message, policies: Vec::new() }
}

fn not_found(kind: Kind) -> DecisionBody {
    refused(format!("No such {}.", kind.as_str().replace('_', " ")), ReasonBody::NotFound)
}

#[cfg(test)]
mod tests {
    use super::{body::ResourceRef, *};
    use crate::{
        domain::{id::UserId, role::Grant},
        jobs::fixture::Fixture,
        on,
    };

    #[tokio::test]
    async fn a_hundred_questions_read_their_thing_once() {
        let fixture = Fixture::sqlite().await;
        let (app, tenant) = (fixture.app().await, fixture.tenant().await);
        let caller = Principal {
            user_id: UserId(Uuid::from_u128(1)),
            organization_id: tenant.organization,
            email: "ada@acme.example".into(),
            name: "Ada".into(),
            grants: vec![Grant { role: Role::Owner, workspace: None }],
            attributes: serde_json::Map::new(),
            platform_administrator: false,
            session_id: None,
            policy_version: None,
        };
        let question = Question {
            action: "gateway.read".into(),
            resource: ResourceRef { kind: "gateway".into(), id: tenant.gateway.0 },
            context: QuestionContext::default(),
        };
        let mut asking = Asking::new(&app, &caller);
        assert!(asking.answer(&question, "").await.unwrap().allowed);
        // Were it read again, it would not be there.
        let mut tx = fixture.store.begin().await.unwrap();
        on!(&mut tx, |c| sqlx::query("DELETE FROM connections").execute(c).await.map(drop)).unwrap();
        tx.commit().await.unwrap();
        for _ in 1..100 {
            assert!(asking.answer(&question, "").await.unwrap().allowed);
        }
        assert!(!Asking::new(&app, &caller).answer(&question, "").await.unwrap().allowed);
    }
}
