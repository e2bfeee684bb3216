use kaizen_plugin::http;
use kaizen_plugin::testing;
use serde_json::json;
use serde_json::value::RawValue;

use super::*;

const KEY: &str = "0123456789abcdef";

fn call(more: Value) -> Call<Config> {
    testing::secret("signing-key", KEY);
    let mut config = json!({"url": "https://hooks.example.com/deploy"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    testing::call::<Webhook>(&config.to_string())
}

fn release() -> Release {
    Release {
        deployment_id: "d-1".into(),
        agent_id: "a-1".into(),
        agent_name: "Support".into(),
        version: 3,
        environment: "production".into(),
        workflow: RawValue::from_string(r#"{"z":1.50,"nodes":[ ]}"#.into()).unwrap(),
        digest: "ab".into(),
    }
}

fn answering(status: u16, body: &'static str) -> testing::FarSide {
    testing::answer(move |_| Ok(Response::new(status, body)))
}

#[test]
fn a_deployment_is_announced_signed_and_keeps_its_bytes() {
    let far_side = answering(201, r#"{"id": 17, "endpoint": "https://a.example.com/17"}"#);
    let registration = Webhook::deploy(&call(json!({"headers": {"X-Team": "a"}})), &release()).unwrap();
    assert_eq!(registration, Registration { id: "17".into(), endpoint: Some("https://a.example.com/17".into()) });
    let request = &far_side.requests()[0];
    let body = std::str::from_utf8(&request.body).unwrap();
    assert!(body.contains(r#""workflow":{"z":1.50,"nodes":[ ]}"#), "{body}");
    let json: Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        (&json["action"], &json["version"], &json["agent_name"]),
        (&"deploy".into(), &3.into(), &"Support".into())
    );
    assert_eq!(json["registration_id"], Value::Null);
    let time = request.header("webhook-timestamp").unwrap();
    let expected = signature::hmac_sha256_hex(KEY.as_bytes(), &[time.as_bytes(), b".", &request.body]);
    assert_eq!(request.header("kaizen-signature"), Some(format!("t={time},v1={expected}").as_str()));
    assert!(request.header("webhook-signature").unwrap().starts_with("v1,"));
    assert_eq!(request.header("webhook-id"), Some("the-same-every-time"));
    assert_eq!(request.header("idempotency-key"), Some("the-same-every-time"));
    assert_eq!((request.header("kaizen-action"), request.header("x-team")), (Some("deploy"), Some("a")));
    assert!(!format!("{request:?}").contains(KEY));
    assert_eq!(testing::take_progress().last().unwrap().0, Some(100));
}

#[test]
fn without_an_answers_id_the_deployments_own_is_it() {
    for body in ["", "queued", "[]", "{}", r#"{"id":null}"#] {
        let _far_side = answering(202, body);
        assert_eq!(Webhook::deploy(&call(json!({})), &release()).unwrap().id, "d-1");
    }
    for bad in [r#"{"id":""}"#, r#"{"id":["a"]}"#, r#"{"id":"a\nb"}"#, r#"{"endpoint":7}"#, r#"{"status":"odd"}"#] {
        let _far_side = answering(200, bad);
        assert!(matches!(Webhook::deploy(&call(json!({})), &release()), Err(Error::Rejected(_))), "{bad}");
    }
}

#[test]
fn a_template_is_filled_in_and_nothing_can_break_out_of_it() {
    let template = json!({
        "event_type": "deploy-{{environment}}",
        "client_payload": {
            "name": "{{ agent_name }} v{{version}}", "version": "{{version}}", "workflow": "{{workflow}}",
            "as_text": "w={{workflow}}", "tags": ["{{agent_id}}", "{{", "}}", "{{registration_id}}", 7, true, null],
        },
    });
    let mut release = release();
    release.agent_name = r#"x", "admin": true, "y": "{{workflow}} {{secret:signing-key}}"#.to_owned();
    let far_side = answering(200, "");
    Webhook::deploy(&call(json!({ "template": template })), &release).unwrap();
    let body: Value = serde_json::from_slice(&far_side.requests()[0].body).unwrap();
    assert_eq!(body["event_type"], "deploy-production");
    let payload = &body["client_payload"];
    assert_eq!(payload["name"], format!("{} v3", release.agent_name));
    assert_eq!((&payload["version"], &payload["workflow"]["z"]), (&3.into(), &1.5.into()));
    assert_eq!(payload["as_text"], r#"w={"z":1.50,"nodes":[ ]}"#);
    assert_eq!(payload["tags"], json!(["a-1", "{{", "}}", null, 7, true, null]));
    assert!(payload.get("admin").is_none());
}

#[test]
fn what_is_wrong_with_a_configuration_is_named_before_anything_is_sent() {
    let far_side = answering(200, "");
    for (config, named) in [
        (json!({"template": {"a": ["{{agentname}}"]}}), "template: `{{agentname}}`"),
        (json!({"template": {"a": "{{secret:signing-key}}"}}), "never put into a body"),
        (json!({"headers": {"Authorization": "x"}}), "headers: `authorization`"),
        (json!({"headers": {"Webhook-Id": "x"}}), "headers: `webhook-id`"),
        (json!({"headers": {"X-Key": "{{secret:signing-key}}"}}), "headers: `x-key`"),
        (json!({"headers": {"x y": "z"}}), "headers: "),
        (json!({"headers": {"x": "a\r\nb: c"}}), "headers: "),
    ] {
        let error = Webhook::check(&call(config)).unwrap_err();
        assert!(matches!(&error, Error::Config(why) if why.contains(named)), "{error}");
    }
    let short = call(json!({}));
    testing::secret("signing-key", "short");
    assert!(matches!(Webhook::check(&short), Err(Error::Config(why)) if !why.contains("short")));
    assert!(far_side.requests().is_empty());
}

#[test]
fn the_receiver_says_how_it_is() {
    for (status, body, state) in [
        (204, "", State::Active),
        (200, r#"{"status":"active"}"#, State::Active),
        (200, r#"{"status":"pending","message":"3 of 5"}"#, State::Pending("3 of 5".into())),
        (200, r#"{"status":"Failed","message":"no room"}"#, State::Failed("no room".into())),
        (200, r#"{"status":"gone"}"#, State::Gone),
        (404, "", State::Gone),
        (410, "", State::Gone),
    ] {
        let far_side = answering(status, body);
        assert_eq!(Webhook::status(&call(json!({})), "17"), Ok(state), "{body}");
        let sent: Value = serde_json::from_slice(&far_side.requests()[0].body).unwrap();
        assert_eq!(
            (&sent["action"], &sent["registration_id"], &sent["workflow"]),
            (&"status".into(), &"17".into(), &Value::Null)
        );
    }
    let far_side = answering(500, "");
    assert_eq!(Webhook::status(&call(json!({"asks_status": false})), "17"), Ok(State::Active));
    assert!(far_side.requests().is_empty());
}

#[test]
fn removing_what_is_gone_succeeds() {
    for status in [200, 204, 404, 410] {
        let _far_side = answering(status, "");
        assert_eq!(Webhook::undeploy(&call(json!({})), "17"), Ok(()));
    }
    let _far_side = answering(503, "");
    assert!(matches!(Webhook::undeploy(&call(json!({})), "17"), Err(Error::Unavailable { .. })));
}

#[test]
fn errors_say_who_has_to_act() {
    let deploy = |answer: fn() -> Result<Response, http::Error>| {
        let _far_side = testing::answer(move |_| answer());
        Webhook::deploy(&call(json!({})), &release()).unwrap_err()
    };
    for status in [301, 401, 403, 404, 405, 410] {
        let _far_side = testing::answer(move |_| Ok(Response::new(status, "")));
        assert!(matches!(Webhook::deploy(&call(json!({})), &release()), Err(Error::Config(_))), "{status}");
    }
    let busy = deploy(|| Ok(Response::new(503, "").with_header("retry-after", "9")));
    assert!(matches!(busy, Error::Unavailable { retry_after: Some(wait), .. } if wait.as_secs() == 9));
    let pending = deploy(|| {
        Ok(Response::new(202, r#"{"status":"pending","message":"building"}"#).with_header("retry-after", "2"))
    });
    assert!(
        matches!(pending, Error::Unavailable { message, retry_after: Some(wait) } if wait.as_secs() == 2 && message.contains("building"))
    );
    assert!(
        matches!(deploy(|| Ok(Response::new(422, r#"{"message":"bad node"}"#))), Error::Rejected(why) if why.contains("bad node"))
    );
    assert!(
        matches!(deploy(|| Ok(Response::new(200, r#"{"status":"failed","message":"no room"}"#))), Error::Rejected(why) if why.contains("no room"))
    );
    assert!(matches!(deploy(|| Err(http::Error::Connect("cut".into()))), Error::Unavailable { .. }));
    assert!(matches!(deploy(|| Err(http::Error::TooLarge { limit: 1 })), Error::Rejected(_)));
}
