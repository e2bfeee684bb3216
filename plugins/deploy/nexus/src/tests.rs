use std::time::Duration;

use kaizen_plugin::http::{self, Method, Response};
use kaizen_plugin::serde_json::value::RawValue;
use kaizen_plugin::serde_json::{Value, from_slice};
use kaizen_plugin::testing;

use super::*;

const CONFIG: &str = r#"{"api_url":"https://gw.example.com/fleet/","ready_seconds":0}"#;

fn release() -> Release {
    Release {
        deployment_id: "d-1".into(),
        agent_id: "a-1".into(),
        agent_name: "Support".into(),
        version: 3,
        environment: "production".into(),
        workflow: RawValue::from_string(r#"{"nodes":[ ],"edges":[]}"#.into()).unwrap(),
        digest: "ab".into(),
    }
}

#[test]
fn deploying_registers_with_the_key_and_reports_progress() {
    let far_side = testing::answer(|request| {
        Ok(match request.method {
            Method::Get => Response::new(200, r#"{"status":"ok"}"#),
            _ => Response::new(201, r#"{"id":"reg/1"}"#),
        })
    });
    let registration = Nexus::deploy(&testing::call::<Nexus>(CONFIG), &release()).unwrap();
    assert_eq!(registration.id, "reg/1");
    assert_eq!(registration.endpoint.as_deref(), Some("https://gw.example.com/fleet/api/v1/agents/reg%2F1"));
    let requests = far_side.requests();
    assert_eq!(requests[0].url.to_string(), "https://gw.example.com/fleet/health");
    let register = &requests[1];
    assert_eq!(register.url.to_string(), "https://gw.example.com/fleet/api/v1/agents/register");
    assert_eq!(register.header("authorization"), Some("Bearer {{secret:api-key}}"));
    assert_eq!(register.header("idempotency-key"), Some("the-same-every-time"));
    let body: Value = from_slice(&register.body).unwrap();
    assert_eq!((&body["name"], &body["agent_type"]), (&"Support".into(), &"workflow".into()));
    assert_eq!((&body["config"]["deployment_id"], &body["config"]["version"]), (&"d-1".into(), &3.into()));
    assert!(body["config"]["workflow"]["nodes"].is_array());
    let steps = testing::take_progress();
    assert!(steps.len() >= 4 && steps.is_sorted_by_key(|step| step.0), "{steps:?}");
    assert_eq!(steps.last().unwrap().0, Some(100));
}

#[test]
fn a_gateway_that_still_starts_the_agent_is_waited_for() {
    let config = r#"{"api_url":"https://gw.example.com","ready_seconds":5}"#;
    let mut asked = 0;
    let far_side = testing::answer(move |request| {
        if request.method == Method::Get && !request.url.path_and_query().ends_with("/health") {
            asked += 1;
        }
        Ok(match (request.method, asked) {
            (Method::Post, _) | (Method::Get, 0 | 1) => Response::new(200, r#"{"id":"r","status":"deploying"}"#),
            _ => Response::new(200, r#"{"id":"r","status":"active"}"#),
        })
    });
    assert_eq!(Nexus::deploy(&testing::call::<Nexus>(config), &release()).unwrap().id, "r");
    assert_eq!(far_side.requests().len(), 4);
}

#[test]
fn a_failed_start_is_a_refusal() {
    let _far_side = testing::answer(|_| Ok(Response::new(200, r#"{"id":"r","status":"failed","error":"bad node"}"#)));
    let error = Nexus::deploy(&testing::call::<Nexus>(CONFIG), &release()).unwrap_err();
    assert!(matches!(&error, Error::Rejected(why) if why.contains("bad node")), "{error}");
}

#[test]
fn errors_say_who_has_to_act() {
    let deploy = |answer: fn() -> Result<Response, http::Error>| {
        let _far_side = testing::answer(move |_| answer());
        Nexus::deploy(&testing::call::<Nexus>(CONFIG), &release()).unwrap_err()
    };
    let busy = deploy(|| Ok(Response::new(503, "").with_header("retry-after", "9")));
    assert!(matches!(busy, Error::Unavailable { retry_after: Some(wait), .. } if wait == Duration::from_secs(9)));
    assert!(matches!(deploy(|| Err(http::Error::Connect("gone".into()))), Error::Unavailable { .. }));
    assert!(matches!(deploy(|| Err(http::Error::Denied("not granted".into()))), Error::Config(_)));
    assert!(matches!(deploy(|| Ok(Response::new(401, ""))), Error::Config(_)));
    assert!(matches!(deploy(|| Ok(Response::new(404, ""))), Error::Config(_)));
    assert!(matches!(deploy(|| Ok(Response::new(422, ""))), Error::Rejected(_)));
    assert!(matches!(deploy(|| Ok(Response::new(200, "<html>"))), Error::Rejected(_)));
    for id in [r#"{"id":""}"#, r#"{"id":".."}"#, r#"{"id":null}"#, "{}", "[]"] {
        let _far_side = testing::answer(move |_| Ok(Response::new(200, id)));
        let error = Nexus::deploy(&testing::call::<Nexus>(CONFIG), &release()).unwrap_err();
        assert!(matches!(error, Error::Rejected(_)), "{id}: {error}");
    }
}

#[test]
fn status_and_removal_know_what_is_gone() {
    let call = testing::call::<Nexus>(CONFIG);
    for (status, body, state) in [
        (200, r#"{"id":"r"}"#, State::Active),
        (200, "served", State::Active),
        (200, r#"{"status":"Running"}"#, State::Active),
        (200, r#"{"status":"deploying"}"#, State::Pending("deploying".into())),
        (200, r#"{"status":"failed","message":"out of memory"}"#, State::Failed("out of memory".into())),
        (404, "", State::Gone),
        (410, "", State::Gone),
    ] {
        let _far_side = testing::answer(move |_| Ok(Response::new(status, body)));
        assert_eq!(Nexus::status(&call, "r").unwrap(), state, "{status} {body}");
    }
    for (status, succeeds) in [(204, true), (200, true), (404, true), (410, true), (401, false), (500, false)] {
        let far_side = testing::answer(move |_| Ok(Response::new(status, "")));
        assert_eq!(Nexus::undeploy(&call, "r").is_ok(), succeeds, "{status}");
        assert_eq!(far_side.requests()[0].method, Method::Delete);
    }
    assert!(Nexus::undeploy(&call, "..").is_err());
}

#[test]
fn checking_tells_the_operator() {
    let call = testing::call::<Nexus>(CONFIG);
    {
        let _far_side = testing::answer(|_| Ok(Response::new(200, "ok")));
        assert_eq!(Nexus::check(&call).unwrap(), "The gateway at gw.example.com answers.");
    }
    let _far_side = testing::answer(|_| Ok(Response::new(403, "bad key")));
    assert!(matches!(Nexus::check(&call), Err(Error::Config(why)) if why.contains("bad key")));
}
