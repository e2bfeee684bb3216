use kaizen_plugin::http::{self, Response};
use kaizen_plugin::testing::{self, event};
use serde_json::{Value, json};

use super::*;

fn call(more: Value) -> Call<Config> {
    let mut config = json!({"url": "https://hec.example.com:8088", "ack_seconds": 1});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    testing::call::<SplunkHec>(&config.to_string())
}

fn events(count: u64) -> Vec<Event> {
    (1..=count).map(event).collect()
}

/// A collector that acknowledges the ids of `acknowledged`, each in the round of questions that is given with it.
fn collector(acknowledged: &'static [(u64, u32)]) -> testing::FarSide {
    let (mut next, mut round) = (0, 0);
    testing::answer(move |request| {
        Ok(match request.url.path_and_query().as_str() {
            "/services/collector/event" => {
                next += 1;
                Response::new(200, json!({"text": "Success", "code": 0, "ackId": next - 1}).to_string())
            }
            "/services/collector/ack" => {
                round += 1;
                let asked: Value = serde_json::from_slice(&request.body).unwrap();
                let asked = asked["acks"].as_array().unwrap().iter().map(|ack| ack.as_u64().unwrap());
                let acks: serde_json::Map<_, _> = asked
                    .map(|ack| {
                        (ack.to_string(), acknowledged.iter().any(|&(id, when)| id == ack && when <= round).into())
                    })
                    .collect();
                Response::new(200, json!({ "acks": acks }).to_string())
            }
            "/services/collector/health" => Response::new(200, r#"{"text":"HEC is healthy","code":17}"#),
            _ => Response::new(404, ""),
        })
    })
}

fn channel(request: &http::Sent) -> String {
    request.header("x-splunk-request-channel").unwrap().to_owned()
}

fn sent(far_side: &testing::FarSide) -> Vec<String> {
    far_side
        .requests()
        .iter()
        .map(|request| request.url.path_and_query().rsplit('/').next().unwrap().to_owned())
        .collect()
}

#[test]
fn events_are_sent_as_hec_takes_them() {
    let far_side = collector(&[(0, 1)]);
    let call = call(json!({"index": "audit", "host": "studio"}));
    assert_eq!(SplunkHec::deliver(&call, &events(2)), Ok(2));
    let request = &far_side.requests()[0];
    assert_eq!(request.url.to_string(), "https://hec.example.com:8088/services/collector/event");
    assert_eq!(request.header("authorization"), Some("Splunk {{secret:token}}"));
    assert_eq!(channel(request), channel(&far_side.requests()[1]));
    let lines: Vec<Value> = request
        .body
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[1]["event"]["sequence"], &lines[1]["event"]["details"]["request_id"]), (&2.into(), &"r".into()));
    assert_eq!(
        (&lines[0]["index"], &lines[0]["host"], &lines[0]["sourcetype"]),
        (&"audit".into(), &"studio".into(), &"kaizen:audit".into())
    );
    assert!(String::from_utf8_lossy(&request.body).starts_with(r#"{"time":1793613600.000000,"#));
}

#[test]
fn a_200_alone_is_not_stored() {
    let far_side = collector(&[]);
    let outcome = SplunkHec::deliver(&call(json!({})), &events(3));
    assert!(matches!(outcome, Err(Error::Unavailable { message, .. }) if message.contains("ack_seconds")));
    assert!(sent(&far_side).iter().filter(|path| *path == "ack").count() > 1);
}

#[test]
fn it_is_asked_until_the_indexer_acknowledges() {
    let far_side = collector(&[(0, 3)]);
    assert_eq!(SplunkHec::deliver(&call(json!({})), &events(3)), Ok(3));
    assert_eq!(sent(&far_side), ["event", "ack", "ack", "ack"]);
}

#[test]
fn what_an_earlier_attempt_sent_is_asked_for_before_anything_is_sent() {
    let mut again = call(json!({}));
    again.attempt = 3;
    let far_side = collector(&[(1, 1)]);
    assert_eq!(SplunkHec::deliver(&again, &events(3)), Ok(3));
    assert_eq!(sent(&far_side), ["ack"]);
    let asked: Value = serde_json::from_slice(&far_side.requests()[0].body).unwrap();
    assert_eq!(asked, json!({"acks": [0, 1]}));

    // Not stored, so it is sent again, on the same channel; a batch that has grown has another.
    let of = |count| {
        let far_side = collector(&[(0, 2)]);
        assert_eq!(SplunkHec::deliver(&again, &events(count)), Ok(u32::try_from(count).unwrap()));
        assert_eq!(sent(&far_side), ["ack", "event", "ack"]);
        channel(&far_side.requests()[0])
    };
    assert_eq!(of(3), channel(&far_side.requests()[0]));
    assert_ne!(of(4), of(3));
}

#[test]
fn without_acknowledgement_a_200_counts_and_a_token_without_it_is_told_of() {
    let far_side = testing::answer(|_| Ok(Response::new(200, r#"{"text":"Success","code":0}"#)));
    assert_eq!(SplunkHec::deliver(&call(json!({"acknowledgement": false})), &events(3)), Ok(3));
    assert_eq!(sent(&far_side), ["event"]);
    let outcome = SplunkHec::deliver(&call(json!({})), &events(3));
    assert!(matches!(outcome, Err(Error::Config(why)) if why.contains("`acknowledgement`")));
}

#[test]
fn errors_say_who_has_to_act() {
    let deliver = |status: u16, body: &'static str| {
        let _far_side = testing::answer(move |_| Ok(Response::new(status, body).with_header("retry-after", "4")));
        SplunkHec::deliver(&call(json!({})), &events(1)).unwrap_err()
    };
    assert!(
        matches!(deliver(403, r#"{"text":"Invalid token","code":4}"#), Error::Config(why) if why.contains("Invalid token"))
    );
    assert!(matches!(deliver(401, r#"{"text":"Token is required","code":2}"#), Error::Config(_)));
    assert!(
        matches!(deliver(400, r#"{"text":"Incorrect index","code":7,"invalid-event-number":0}"#), Error::Config(why) if why.contains("index"))
    );
    assert!(
        matches!(deliver(400, r#"{"text":"Data channel is missing","code":10}"#), Error::Config(why) if why.contains("acknowledgement"))
    );
    assert!(matches!(deliver(400, r#"{"text":"ACK is disabled","code":14}"#), Error::Config(_)));
    assert!(
        matches!(deliver(400, r#"{"text":"Token disabled","code":22}"#), Error::Config(why) if why.contains("`token`"))
    );
    assert!(
        matches!(deliver(400, r#"{"text":"Invalid data format","code":6,"invalid-event-number":0}"#), Error::Rejected(why) if why.contains(&event(1).id) && why.contains("Invalid data format"))
    );
    // A number beyond the batch names nothing.
    assert!(matches!(
        deliver(400, r#"{"text":"Invalid data format","code":6,"invalid-event-number":7}"#),
        Error::Rejected(_)
    ));
    assert!(matches!(deliver(404, "<html>"), Error::Config(why) if why.contains("hec.example.com:8088")));
    assert!(matches!(deliver(413, ""), Error::Rejected(_)));
    let wait = Some(Duration::from_secs(4));
    assert!(
        matches!(deliver(503, r#"{"text":"Server is busy","code":9}"#), Error::Unavailable { retry_after, .. } if retry_after == wait)
    );
    assert!(matches!(deliver(429, ""), Error::Unavailable { retry_after, .. } if retry_after == wait));
    assert!(matches!(deliver(200, "<html>a portal</html>"), Error::Unavailable { .. }));
    assert!(matches!(deliver(200, r#"{"text":"Queued?","code":20}"#), Error::Unavailable { .. }));
    assert!(matches!(deliver(302, ""), Error::Config(_)));
    let _far_side = testing::answer(|_| Err(http::Error::Connect("cut".into())));
    assert!(matches!(SplunkHec::deliver(&call(json!({})), &events(1)), Err(Error::Unavailable { .. })));
    let _far_side = testing::answer(|_| Err(http::Error::TooLarge { limit: 1 }));
    assert!(matches!(SplunkHec::deliver(&call(json!({})), &events(1)), Err(Error::Rejected(_))));
}

/// A collector that refuses the event of one sequence, and has taken those before it; which ones it stored.
fn poisoned(poison: u64) -> (testing::FarSide, std::rc::Rc<std::cell::RefCell<Vec<u64>>>) {
    let stored = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let (kept, mut acks) = (stored.clone(), 0);
    let far_side = testing::answer(move |request| {
        if request.url.path_and_query().ends_with("/ack") {
            return Ok(Response::new(200, r#"{"acks":{"0":true}}"#));
        }
        let lines = request.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        for (number, line) in lines.enumerate() {
            let sequence = serde_json::from_slice::<Value>(line).unwrap()["event"]["sequence"].as_u64().unwrap();
            if sequence == poison {
                let answer = json!({"text": "Invalid data format", "code": 6, "invalid-event-number": number});
                return Ok(Response::new(400, answer.to_string()));
            }
            kept.borrow_mut().push(sequence);
        }
        acks += 1;
        Ok(Response::new(200, json!({"text": "Success", "code": 0, "ackId": acks - 1}).to_string()))
    });
    (far_side, stored)
}

#[test]
fn what_was_stored_before_an_event_that_is_refused_is_not_sent_again() {
    let call = call(json!({"acknowledgement": false}));
    let batch = events(5);
    let (_far_side, stored) = poisoned(4);
    assert_eq!(SplunkHec::deliver(&call, &batch), Ok(3));
    for _ in 0..3 {
        let refused = SplunkHec::deliver(&call, &batch[3..]).unwrap_err();
        assert!(
            matches!(&refused, Error::Rejected(why) if why.contains(&batch[3].id) && why.contains("sequence 4")),
            "{refused}"
        );
    }
    assert_eq!(*stored.borrow(), [1, 2, 3]);
}

#[test]
fn with_acknowledgement_what_was_stored_before_a_refused_event_is_confirmed_once() {
    let call = call(json!({}));
    let (_far_side, stored) = poisoned(4);
    assert_eq!(SplunkHec::deliver(&call, &events(5)), Ok(3));
    assert!(matches!(SplunkHec::deliver(&call, &events(5)[3..]), Err(Error::Rejected(_))));
    assert_eq!(*stored.borrow(), [1, 2, 3, 1, 2, 3]);
}

#[test]
fn a_200_that_is_not_hecs_is_the_same_to_check_and_to_delivery() {
    for (body, taken) in
        [("OK", true), ("", true), ("<html>", false), ("[]", false), (r#"{"text":"no","code":9}"#, false)]
    {
        let _far_side = testing::answer(move |_| Ok(Response::new(200, body)));
        let call = call(json!({"acknowledgement": false}));
        assert_eq!(SplunkHec::check(&call).is_ok(), taken, "{body}");
        assert_eq!(SplunkHec::deliver(&call, &events(2)).is_ok(), taken, "{body}");
    }
    // With acknowledgement, an answer without an id never counts.
    let _far_side = testing::answer(|_| Ok(Response::new(200, "OK")));
    assert!(SplunkHec::check(&call(json!({}))).is_err());
    assert!(
        matches!(SplunkHec::deliver(&call(json!({})), &events(2)), Err(Error::Config(why)) if why.contains("`acknowledgement`"))
    );
}

#[test]
fn a_collector_without_a_health_route_is_known_by_its_events() {
    let _far_side = testing::answer(|request| {
        let health = request.url.path_and_query().ends_with("/health");
        Ok(if health {
            Response::new(404, "404 page not found")
        } else {
            Response::new(400, r#"{"text":"No data","code":5}"#)
        })
    });
    assert!(SplunkHec::check(&call(json!({"acknowledgement": false}))).is_ok());
}

#[test]
fn checking_writes_no_event() {
    let far_side = collector(&[]);
    assert!(SplunkHec::check(&call(json!({}))).unwrap().contains("acknowledges"));
    assert_eq!(sent(&far_side), ["health", "ack"]);
    // Acknowledgements are told once: a check must not take away those that a delivery waits for.
    let checked = channel(&far_side.requests()[1]);
    let delivered = collector(&[(0, 1)]);
    assert_eq!(SplunkHec::deliver(&call(json!({})), &events(1)), Ok(1));
    assert_ne!(channel(&delivered.requests()[0]), checked);
    let far_side = testing::answer(|request| {
        let health = request.url.path_and_query().ends_with("/health");
        Ok(if health { Response::new(200, "{}") } else { Response::new(400, r#"{"text":"No data","code":5}"#) })
    });
    assert!(SplunkHec::check(&call(json!({"acknowledgement": false}))).is_ok());
    assert!(far_side.requests().iter().all(|request| request.body.is_empty()));
    let _far_side =
        testing::answer(|_| Ok(Response::new(503, r#"{"text":"HEC is unhealthy, queues are full","code":18}"#)));
    assert!(matches!(SplunkHec::check(&call(json!({}))), Err(Error::Unavailable { .. })));
}
