use std::sync::Arc;

use super::{refresh::PATIENCE, *};
use crate::{
    jobs::fixture::{Fixture, eventually},
    sandbox::egress::{Client, Policy, SystemResolver},
};

#[tokio::test]
async fn whoever_changed_something_does_not_wait_for_this_host_to_run_it() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let library = Library {
        store: app.store.clone(),
        bus: app.bus.clone(),
        trust: Trust::default(),
        secrets: app.secrets.clone(),
        max_bytes: 1,
        kept: Kept::default(),
        loads: Loads::new(Duration::from_secs(1)),
        turn: Mutex::new(None),
    };
    let cache = Cache::new(app.config.data_dir.join("compiled"), &[9; 32]);
    let policy = Policy { allow: Vec::new(), allow_private: Vec::new(), deny: Vec::new() };
    let sandbox = Sandbox::new(cache, Client::new(policy, Arc::new(SystemResolver::default()))).unwrap();
    let plugins = Plugins::assemble(sandbox, Vec::new(), Default::default(), Some(library)).await.unwrap();
    let library = plugins.0.library.as_ref().unwrap();
    // As if this host were reading the tables from a database that takes its time.
    let turn = library.turn.lock().await;
    let mut tx = app.store.begin().await.unwrap();
    rows::lock(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let generation = rows::generation(&mut app.store.read().await.unwrap()).await.unwrap();
    let answered = tokio::time::timeout(PATIENCE * 10, plugins.changed(Vec::new())).await;
    assert!(answered.is_ok(), "the change is committed: its answer does not wait");
    assert_ne!(plugins.0.registry.load().generation, generation);
    drop(turn);
    eventually("it goes on by itself", || async { plugins.0.registry.load().generation == generation }).await;
}
