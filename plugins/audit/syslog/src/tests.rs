use std::io::Read as _;
use std::net::TcpListener;
use std::thread;

use kaizen_plugin::Error;
use kaizen_plugin::testing::{self, event};
use serde_json::json;

use super::*;

fn call(port: u16) -> Call<Config> {
    testing::call::<Syslog>(&json!({"host": "127.0.0.1", "port": port}).to_string())
}

#[test]
fn a_batch_is_stored_once_the_server_has_read_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let mut batches = Vec::new();
        for _ in 0..2 {
            let mut read = String::new();
            listener.accept().unwrap().0.read_to_string(&mut read).unwrap();
            batches.push(read);
        }
        batches
    });
    let events: Vec<Event> = (1..=50).map(event).collect();
    assert_eq!(Syslog::deliver(&call(port), &events), Ok(50));
    assert!(Syslog::check(&call(port)).unwrap().contains(&port.to_string()));
    let batches = server.join().unwrap();
    assert_eq!(batches[0].matches(" <110>1 ").count(), 50);
    assert_eq!(batches[1], "");
}

#[test]
fn a_server_that_is_away_or_breaks_off_is_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // It reads a byte of a large batch and closes: the rest is lost.
    let server = thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        connection.read_exact(&mut [0]).unwrap();
    });
    let events: Vec<Event> = (1..=500).map(event).collect();
    assert!(matches!(Syslog::deliver(&call(port), &events), Err(Error::Unavailable { .. })));
    server.join().unwrap();
    assert!(matches!(Syslog::deliver(&call(port), &events), Err(Error::Unavailable { .. })));
}

#[test]
fn an_event_that_cannot_be_sent_keeps_back_none_before_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let mut read = String::new();
        listener.accept().unwrap().0.read_to_string(&mut read).unwrap();
        read
    });
    let mut events: Vec<Event> = (1..=3).map(event).collect();
    events[2].target = "x".repeat(10_000);
    assert_eq!(Syslog::deliver(&call(port), &events), Ok(2));
    assert_eq!(server.join().unwrap().matches(" <110>1 ").count(), 2);
    let refused = Syslog::deliver(&call(port), &events[2..]).unwrap_err();
    assert!(matches!(&refused, Error::Rejected(why) if why.contains(&events[2].id)), "{refused}");
}
