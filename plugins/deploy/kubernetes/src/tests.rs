use std::cell::RefCell;
use std::rc::Rc;

use kaizen_plugin::http::{self, Method, Response, Sent};
use kaizen_plugin::testing;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::*;

const WORKFLOW: &str = r#"{"nodes":[ ],"z":1.50}"#;

fn call(more: Value) -> Call<Config> {
    let mut config = json!({
        "api_url": "https://10.0.0.1:6443", "namespace": "agents", "image": "registry.example.com/runtime:1",
        "ready_seconds": 0,
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    testing::call::<Kubernetes>(&config.to_string())
}

fn release() -> Release {
    Release {
        deployment_id: "0192AB00-0000-7000-8000-000000000001".into(),
        agent_id: "a-1".into(),
        agent_name: "Support & Sales".into(),
        version: 3,
        environment: "production".into(),
        workflow: RawValue::from_string(WORKFLOW.into()).unwrap(),
        digest: "ab".into(),
    }
}

const NAME: &str = "agent-0192ab00-0000-7000-8000-000000000001";

fn status(code: u16, reason: &str, message: &str, details: Value) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
        "details": details,
    });
    Response::new(code, body.to_string())
}

fn deployment(status: Value) -> Response {
    Response::new(
        200,
        json!({"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status})
            .to_string(),
    )
}

fn ready() -> Response {
    deployment(json!({
        "observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 2,
        "conditions": [{"type": "Progressing", "status": "True"}, {"type": "Available", "status": "True"}],
    }))
}

/// A cluster that takes everything; the Deployment is as told.
fn cluster(state: fn() -> Response) -> testing::FarSide {
    cluster_of(state)
}

fn cluster_of(state: impl Fn() -> Response + 'static) -> testing::FarSide {
    testing::answer(move |request| {
        Ok(match request.method {
            Method::Get if request.url.path_and_query() == "/version" => {
                Response::new(200, r#"{"major":"1","gitVersion":"v1.33.1"}"#)
            }
            Method::Get => state(),
            _ => Response::new(200, "{}"),
        })
    })
}

fn applied(request: &Sent) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

#[test]
fn a_deployment_is_applied_with_the_token_and_becomes_active() {
    let far_side = cluster(ready);
    let config = json!({
        "replicas": 2, "port": 9000, "env": {"LOG": "debug", "PORT": "1"}, "env_from_secrets": ["keys"],
        "image_pull_secrets": ["pull"], "service_account": "agents", "cpu": "250m", "memory": "512Mi",
        "readiness_path": "/healthz",
    });
    let registration = Kubernetes::deploy(&call(config), &release()).unwrap();
    assert_eq!(registration.id, format!("agents/{NAME}"));
    assert_eq!(registration.endpoint, Some(format!("http://{NAME}.agents.svc:9000")));
    let requests = far_side.requests();
    let paths: Vec<_> = requests.iter().map(|request| (request.method, request.url.path_and_query())).collect();
    let apply = format!("{NAME}?fieldManager=kaizen-studio&force=false");
    assert_eq!(
        paths,
        [
            (Method::Patch, format!("/api/v1/namespaces/agents/configmaps/{apply}&dryRun=All")),
            (Method::Patch, format!("/api/v1/namespaces/agents/services/{apply}&dryRun=All")),
            (Method::Patch, format!("/apis/apps/v1/namespaces/agents/deployments/{apply}&dryRun=All")),
            (Method::Patch, format!("/api/v1/namespaces/agents/configmaps/{apply}")),
            (Method::Patch, format!("/api/v1/namespaces/agents/services/{apply}")),
            (Method::Patch, format!("/apis/apps/v1/namespaces/agents/deployments/{apply}")),
            (Method::Get, format!("/apis/apps/v1/namespaces/agents/deployments/{NAME}")),
        ]
    );
    for request in &requests {
        assert_eq!(request.header("authorization"), Some("Bearer {{secret:token}}"));
    }
    assert_eq!(requests[0].header("content-type"), Some("application/apply-patch+yaml"));
    let (map, service, object) = (applied(&requests[3]), applied(&requests[4]), applied(&requests[5]));
    for (dry, real) in requests[..3].iter().zip(&requests[3..]) {
        assert_eq!(dry.body, real.body);
    }
    assert_eq!(map["data"]["workflow.json"], WORKFLOW);
    assert_eq!(map["metadata"]["annotations"]["kaizen.studio/agent-name"], "Support & Sales");
    assert_eq!(service["spec"]["selector"], object["spec"]["selector"]["matchLabels"]);
    let pod = &object["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let env: Vec<_> = container["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["name"].as_str().unwrap(), e["value"].as_str().unwrap()))
        .collect();
    assert!(
        env.contains(&("LOG", "debug")) && env.contains(&("PORT", "9000")) && !env.contains(&("PORT", "1")),
        "{env:?}"
    );
    assert_eq!(container["envFrom"], json!([{"secretRef": {"name": "keys"}}]));
    assert_eq!(
        container["resources"],
        json!({"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "512Mi"}})
    );
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/healthz");
    assert_eq!((&pod["serviceAccountName"], &pod["automountServiceAccountToken"]), (&"agents".into(), &false.into()));
    assert_eq!(testing::take_progress().last().unwrap().0, Some(100));
}

#[test]
fn attempts_at_a_deployment_apply_the_same() {
    let bodies = || {
        let far_side = cluster(ready);
        Kubernetes::deploy(&call(json!({})), &release()).unwrap();
        far_side.requests()
    };
    assert_eq!(bodies(), bodies());
}

#[test]
fn conditions_decide() {
    let of = |answer: fn() -> Response| {
        let _far_side = cluster(answer);
        Kubernetes::status(&call(json!({})), &format!("agents/{NAME}"))
    };
    assert_eq!(of(ready), Ok(State::Active));
    // What the controller has not seen yet says nothing.
    let old = || {
        deployment(
            json!({"observedGeneration": 1, "updatedReplicas": 2, "availableReplicas": 2, "conditions": [{"type": "Available", "status": "True"}]}),
        )
    };
    assert!(matches!(of(old), Ok(State::Pending(_))));
    assert!(matches!(of(|| deployment(json!({}))), Ok(State::Pending(_))));
    let half = || {
        deployment(
            json!({"observedGeneration": 2, "updatedReplicas": 1, "availableReplicas": 2, "conditions": [{"type": "Available", "status": "True"}]}),
        )
    };
    assert_eq!(of(half), Ok(State::Pending("1 of 2 are ready".into())));
    let late = || {
        deployment(
            json!({"observedGeneration": 2, "conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "it has timed out progressing"}]}),
        )
    };
    assert!(matches!(of(late), Ok(State::Failed(why)) if why.starts_with("it has timed out progressing")));
    let quota = || {
        deployment(
            json!({"observedGeneration": 2, "conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}),
        )
    };
    assert_eq!(of(quota), Ok(State::Pending("exceeded quota".into())));
    assert_eq!(of(|| status(404, "NotFound", "deployments.apps not found", json!({}))), Ok(State::Gone));
    let going = || Response::new(200, r#"{"metadata":{"deletionTimestamp":"2026-11-02T10:00:00Z"},"spec":{}}"#);
    assert_eq!(of(going), Ok(State::Gone));
    // A portal's 404 is not the cluster's.
    assert!(matches!(of(|| Response::new(404, "<html>")), Err(Error::Config(why)) if why.contains("api_url")));
}

#[test]
fn a_rollout_that_goes_on_is_for_the_next_attempt_and_a_failed_one_is_removed() {
    let far_side = cluster(|| deployment(json!({"observedGeneration": 2})));
    let outcome = Kubernetes::deploy(&call(json!({})), &release());
    assert!(matches!(outcome, Err(Error::Unavailable { message, retry_after: Some(_) }) if message.contains("0 of 2")));
    assert!(far_side.requests().iter().all(|request| request.method != Method::Delete));
    let far_side = cluster(|| {
        deployment(
            json!({"observedGeneration": 2, "conditions": [{"type": "Progressing", "status": "False", "message": "no image"}]}),
        )
    });
    assert!(
        matches!(Kubernetes::deploy(&call(json!({})), &release()), Err(Error::Rejected(why)) if why.contains("no image"))
    );
    assert_eq!(far_side.requests().iter().filter(|request| request.method == Method::Delete).count(), 3);
}

#[test]
fn why_pods_could_not_be_made_outlives_the_deadline() {
    let failed = |answer: &'static str| {
        let _far_side = cluster_of(move || Response::new(200, answer));
        Kubernetes::deploy(&call(json!({})), &release()).unwrap_err().to_string()
    };
    let quota = failed(include_str!("tests/deployment-quota-then-deadline.json"));
    assert!(quota.contains("exceeded quota: namespace-quota") && quota.contains("timed out progressing"), "{quota}");
    let image = failed(include_str!("tests/deployment-image-pull.json"));
    assert!(image.contains("timed out progressing") && image.contains("kubectl get events -n agents"), "{image}");
}

/// What there is in a cluster that refuses one kind of object, in a dry run too where it says so there.
fn refused(kind: &'static str, in_dry_run: bool, attempt: u32) -> (Vec<String>, Error) {
    let there = Rc::new(RefCell::new(std::collections::BTreeSet::new()));
    let kept = there.clone();
    let _far_side = testing::answer(move |request| {
        let target = request.url.path_and_query();
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let dry = target.contains("dryRun=All");
        if request.method == Method::Patch && path.contains(kind) && (in_dry_run || !dry) {
            return Ok(Response::new(409, include_str!("tests/status-conflict-hpa.json")));
        }
        match request.method {
            Method::Patch if !dry => drop(kept.borrow_mut().insert(path)),
            Method::Delete => drop(kept.borrow_mut().remove(&path)),
            _ => {}
        }
        Ok(Response::new(200, "{}"))
    });
    let mut call = call(json!({}));
    call.attempt = attempt;
    if attempt > 1 {
        there.borrow_mut().insert(format!("/api/v1/namespaces/agents/configmaps/{NAME}"));
    }
    let error = Kubernetes::deploy(&call, &release()).unwrap_err();
    (there.borrow().iter().cloned().collect(), error)
}

#[test]
fn of_a_refused_deployment_nothing_is_left() {
    for kind in ["configmaps", "services", "deployments"] {
        for in_dry_run in [true, false] {
            for attempt in [1, 2] {
                let (left, error) = refused(kind, in_dry_run, attempt);
                assert!(left.is_empty(), "{kind} {in_dry_run} {attempt}: {left:?}");
                assert!(matches!(&error, Error::Rejected(why) if why.contains("kube-controller-manager")), "{error}");
            }
        }
    }
}

#[test]
fn what_cannot_be_removed_is_told_and_what_goes_on_is_not_removed() {
    let away = |delete: u16, apply: u16| {
        let far_side = testing::answer(move |request| {
            Ok(match request.method {
                Method::Delete => status(delete, "Forbidden", "is forbidden: User \"k\" cannot delete", json!({})),
                Method::Patch if request.url.path_and_query().contains("deployments") => match apply {
                    409 if request.url.path_and_query().contains("dryRun") => Response::new(200, "{}"),
                    409 => Response::new(409, include_str!("tests/status-conflict-hpa.json")),
                    _ => Response::new(apply, ""),
                },
                _ => Response::new(200, "{}"),
            })
        });
        let error = Kubernetes::deploy(&call(json!({})), &release()).unwrap_err();
        (far_side.requests().iter().filter(|request| request.method == Method::Delete).count(), error)
    };
    let (_, error) = away(403, 409);
    assert!(
        matches!(&error, Error::Rejected(why) if why.contains("could not be removed") && why.contains(NAME)),
        "{error}"
    );
    let (deleted, error) = away(200, 503);
    assert!(deleted == 0 && matches!(error, Error::Unavailable { .. }));
}

#[test]
fn a_webhook_that_knows_no_dry_run_stands_in_nobodys_way() {
    let _far_side = testing::answer(|request| {
        Ok(match request.method {
            Method::Get => ready(),
            Method::Patch if request.url.path_and_query().contains("dryRun") => {
                status(400, "BadRequest", "admission webhook \"w.example.com\" does not support dry run", json!({}))
            }
            _ => Response::new(200, "{}"),
        })
    });
    assert!(Kubernetes::deploy(&call(json!({})), &release()).is_ok());
}

#[test]
fn the_attempts_outlast_the_progress_deadline() {
    for deadline in [10, 300, 3600] {
        let pauses = (1..=4).map(|attempt| {
            let mut call = call(json!({ "progress_deadline_seconds": deadline }));
            call.attempt = attempt;
            later(&call)
        });
        let all: Duration = pauses.sum();
        assert!(all >= Duration::from_secs(deadline) && all <= Duration::from_secs(deadline + 20), "{all:?}");
    }
}

#[test]
fn what_is_gone_can_be_removed() {
    for missing in [false, true] {
        let far_side = testing::answer(move |_| {
            Ok(if missing { status(404, "NotFound", "not found", json!({})) } else { Response::new(202, "{}") })
        });
        assert_eq!(Kubernetes::undeploy(&call(json!({"namespace": "moved"})), &format!("agents/{NAME}")), Ok(()));
        let paths: Vec<_> = far_side.requests().iter().map(|request| request.url.path_and_query()).collect();
        assert_eq!(
            paths,
            [
                format!("/apis/apps/v1/namespaces/agents/deployments/{NAME}"),
                format!("/api/v1/namespaces/agents/services/{NAME}"),
                format!("/api/v1/namespaces/agents/configmaps/{NAME}"),
            ]
        );
    }
    let far_side = testing::answer(|_| Ok(Response::new(200, "{}")));
    for odd in ["", "x", "agents/", "a/b/c", "../x", "agents/x?y", "Agents/x"] {
        assert!(matches!(Kubernetes::undeploy(&call(json!({})), odd), Err(Error::Rejected(_))), "{odd}");
    }
    assert!(far_side.requests().is_empty());
}

fn deploying(answer: fn() -> Result<Response, http::Error>) -> Error {
    let _far_side = testing::answer(move |_| answer());
    Kubernetes::deploy(&call(json!({})), &release()).unwrap_err()
}

#[test]
fn errors_say_who_has_to_act() {
    let unauthorized = deploying(|| Ok(status(401, "Unauthorized", "Unauthorized", json!({}))));
    assert!(matches!(unauthorized, Error::Config(why) if why.contains("`token`")));
    // As API servers answered.
    let forbidden = deploying(|| Ok(Response::new(403, include_str!("tests/status-rbac.json"))));
    assert!(matches!(forbidden, Error::Config(why) if why.contains("cannot patch") && why.contains("Role")));
    let quota = deploying(|| Ok(Response::new(403, include_str!("tests/status-quota.json"))));
    assert!(matches!(quota, Error::Rejected(why) if why.contains("limited: services=10") && !why.contains("Role")));
    let terminating = deploying(|| Ok(Response::new(403, include_str!("tests/status-terminating.json"))));
    assert!(
        matches!(&terminating, Error::Config(why) if why.contains("`agents` is being deleted") && !why.contains("Role")),
        "{terminating}"
    );
    let admission = deploying(|| Ok(Response::new(403, include_str!("tests/status-admission-denied.json"))));
    assert!(
        matches!(&admission, Error::Rejected(why) if why.contains("validation.gatekeeper.sh") && why.contains("cost-center") && !why.contains("Role")),
        "{admission}"
    );
    let timeout = deploying(|| Ok(Response::new(500, include_str!("tests/status-admission-timeout.json"))));
    assert!(matches!(timeout, Error::Unavailable { .. }));
    let portal = deploying(|| Ok(Response::new(403, "<html>")));
    assert!(matches!(portal, Error::Config(why) if why.contains("api_url") && !why.contains("Role")));
    let namespace = deploying(|| Ok(status(404, "NotFound", "namespaces \"agents\" not found", json!({}))));
    assert!(matches!(namespace, Error::Config(why) if why.contains("namespace") && why.contains("agents")));
    let invalid = deploying(|| {
        let causes = json!({"causes": [{"reason": "FieldValueInvalid", "message": "Invalid value: \"x\"", "field": "spec.ports[0].port"}]});
        Ok(status(422, "Invalid", "Service is invalid", causes))
    });
    assert!(matches!(invalid, Error::Rejected(why) if why.contains("spec.ports[0].port")));
    let busy = deploying(|| Ok(status(429, "TooManyRequests", "slow down", json!({"retryAfterSeconds": 3}))));
    assert!(matches!(busy, Error::Unavailable { retry_after: Some(wait), .. } if wait == Duration::from_secs(3)));
    let away = deploying(|| Ok(Response::new(503, "").with_header("retry-after", "8")));
    assert!(matches!(away, Error::Unavailable { retry_after: Some(wait), .. } if wait == Duration::from_secs(8)));
    assert!(matches!(deploying(|| Ok(status(500, "InternalError", "etcd", json!({})))), Error::Unavailable { .. }));
    assert!(matches!(deploying(|| Ok(status(415, "UnsupportedMediaType", "", json!({})))), Error::Config(_)));
    assert!(matches!(deploying(|| Ok(Response::new(307, "").with_header("location", "https://e/"))), Error::Config(_)));
    assert!(matches!(deploying(|| Err(http::Error::Connect("cut".into()))), Error::Unavailable { .. }));
    assert!(matches!(deploying(|| Ok(Response::new(200, "<html>"))), Error::Rejected(_)));
    assert!(matches!(deploying(|| Err(http::Error::TooLarge { limit: 1 })), Error::Rejected(_)));
}

#[test]
fn fields_of_others_are_not_taken_over_unless_told_to() {
    let conflict = deploying(|| {
        let causes = json!({"causes": [{"reason": "FieldManagerConflict", "message": "conflict with \"hpa\" using apps/v1", "field": ".spec.replicas"}]});
        Ok(status(409, "Conflict", "Apply failed with 1 conflict", causes))
    });
    assert!(
        matches!(&conflict, Error::Rejected(why) if why.contains(".spec.replicas") && why.contains("hpa") && why.contains("force_conflicts")),
        "{conflict}"
    );
    let conflict = deploying(|| Ok(Response::new(409, include_str!("tests/status-conflict-hpa.json"))));
    assert!(matches!(&conflict, Error::Rejected(why) if why.contains("kube-controller-manager")), "{conflict}");
    // An ordinary race passes.
    let race = deploying(|| Ok(status(409, "Conflict", "the object has been modified", json!({}))));
    assert!(matches!(race, Error::Unavailable { .. }));
    let far_side = cluster(ready);
    Kubernetes::deploy(&call(json!({"force_conflicts": true})), &release()).unwrap();
    assert!(far_side.requests()[0].url.path_and_query().contains("force=true"));
}

#[test]
fn checking_makes_nothing() {
    let seen = Rc::new(RefCell::new(0));
    let counted = seen.clone();
    let far_side = testing::answer(move |request| {
        *counted.borrow_mut() += 1;
        Ok(match request.method {
            Method::Get if request.url.path_and_query() == "/version" => {
                Response::new(200, r#"{"gitVersion":"v1.33.1"}"#)
            }
            Method::Get | Method::Delete => status(404, "NotFound", "not found", json!({})),
            _ => Response::new(200, "{}"),
        })
    });
    assert!(Kubernetes::check(&call(json!({}))).unwrap().contains("v1.33.1"));
    let writes: Vec<_> = far_side.requests().into_iter().filter(|request| request.method != Method::Get).collect();
    // A token that may not delete could never stop what it deployed.
    assert_eq!(writes.iter().filter(|request| request.method == Method::Delete).count(), 3);
    assert_eq!(writes.len(), 6);
    assert!(writes.iter().all(|request| request.url.path_and_query().contains("dryRun=All")));
    assert_eq!(*seen.borrow(), 10);
    let _far_side = testing::answer(|_| Ok(Response::new(200, "{}")));
    assert!(matches!(Kubernetes::check(&call(json!({}))), Err(Error::Config(why)) if why.contains("api_url")));
}

#[test]
fn a_workflow_that_no_config_map_holds_is_refused() {
    let far_side = cluster(ready);
    let mut release = release();
    release.workflow = RawValue::from_string(format!("\"{}\"", "x".repeat(1_000_000))).unwrap();
    assert!(
        matches!(Kubernetes::deploy(&call(json!({})), &release), Err(Error::Rejected(why)) if why.contains("ConfigMap"))
    );
    assert!(far_side.requests().is_empty());
}
