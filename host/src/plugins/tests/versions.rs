//! What becomes of versions in the database, without a server around them.

use super::*;
use crate::{
    domain::plugin::Origin,
    jobs::fixture::Fixture,
    on,
    plugins::{
        fit::{Examined, misfits},
        install::{ChangeError, quarantine, register, release},
    },
    store::plugins as rows,
};

/// The bundled sink for files, as a build of the server that makes other bytes of it would have it.
async fn candidate(digit: &str) -> Candidate {
    let cache = Cache::new(std::env::temp_dir().join("kaizen-test-compiled"), &[9; 32]);
    let sandbox = Sandbox::new(cache, client(&[])).unwrap();
    let (_, name, wasm) = bundled().find(|(kind, name, _)| (*kind, *name) == (Kind::AuditSink, "file")).unwrap();
    let wasm = Bytes::from_static(wasm);
    let plugin = check::load(&sandbox, name, None, wasm.clone()).await.unwrap();
    let plugin = Arc::new(Plugin { digest: digit.repeat(64), ..plugin });
    Candidate { plugin, wasm, origin: Origin::Bundled, signature: None, seal: Some("seal".into()) }
}

#[tokio::test]
async fn a_version_stays_in_quarantine_when_the_server_brings_other_bytes_of_it() {
    let [first, second, third] = [candidate("a").await, candidate("b").await, candidate("c").await];
    let clock = Clock::system();
    for fixture in Fixture::each().await {
        let mut tx = fixture.store.begin().await.unwrap();
        let mut bad = register(&mut tx, &clock, &first, None).await.unwrap();
        let why = ("it sends events elsewhere", clock.id());
        quarantine(&mut tx, &clock, &mut bad.plugin, &bad.version, why).await.unwrap();

        let mut upgraded = register(&mut tx, &clock, &second, None).await.unwrap();
        assert_eq!((upgraded.fresh, upgraded.version.digest.as_str()), (false, second.digest()));
        let kept = rows::quarantine(&mut tx, second.digest()).await.unwrap().expect("it is in quarantine");
        assert_eq!(kept.reason, "it sends events elsewhere");
        assert_eq!(upgraded.quarantined.map(|kept| kept.digest).as_deref(), Some(second.digest()));
        // The bytes of before do not come back either.
        assert!(matches!(register(&mut tx, &clock, &first, None).await, Err(ChangeError::Conflict(_))));

        release(&mut tx, &clock, &mut upgraded.plugin, &upgraded.version).await.unwrap();
        let released = register(&mut tx, &clock, &third, None).await.unwrap();
        assert!(released.quarantined.is_none());
        assert!(rows::quarantine(&mut tx, third.digest()).await.unwrap().is_none());
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_changed_since_it_was_looked_at_is_looked_at_again_and_one_that_goes_on_changing_keeps_nobody()
 {
    let (candidate, clock) = (candidate("a").await, Clock::system());
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        fixture.sink(&tenant).await;
        let mut tx = fixture.store.begin().await.unwrap();
        let mut registered = register(&mut tx, &clock, &candidate, None).await.unwrap();
        tx.commit().await.unwrap();
        registered.plugin.active_version = Some("0.0.1".into());
        let (plugin, version) = (&registered.plugin, &registered.version);
        let mut examined = Examined::default();
        let look = async |examined: &mut Examined| {
            examined.look(&fixture.store, &candidate.plugin, (plugin.kind, &plugin.name), &version.line).await.unwrap();
        };
        let misfits_of = async |examined: &Examined| {
            let mut tx = fixture.store.begin().await.unwrap();
            let found = misfits(&mut tx, (&candidate.plugin, examined), plugin, version).await;
            found.map(|found| found.map_or(0, |found| found.connections.len()))
        };
        let change = async |config: Option<serde_json::Value>| {
            let mut tx = fixture.store.begin().await.unwrap();
            let sql = "UPDATE connections SET revision = revision + 1, config = COALESCE($1, config) WHERE kind = 'audit_sink'";
            let config = config.map(sqlx::types::Json);
            on!(&mut tx, |c| sqlx::query(sql).bind(config).execute(c).await.map(drop)).unwrap();
            tx.commit().await.unwrap();
        };
        assert!(matches!(misfits_of(&examined).await, Err(ChangeError::Moved)), "it was not looked at");
        look(&mut examined).await;
        assert!(matches!(misfits_of(&examined).await, Ok(0)));
        change(None).await;
        assert!(matches!(misfits_of(&examined).await, Ok(0)), "what matters did not change");

        // It changes again after each look.
        let (mut tries, mut number) = (0, 0);
        let found = loop {
            look(&mut examined).await;
            number += 1;
            change(Some(json!({ "surplus": number }))).await;
            match misfits_of(&examined).await {
                Err(ChangeError::Moved) => examined.again(),
                done => break done,
            }
            tries += 1;
            assert!(tries < 20, "it ends");
        };
        assert!(matches!(found, Ok(1)), "as it is now");
        assert!(tries > 0, "it was looked at before the transaction, as long as that helped");
        change(Some(json!({}))).await;
        assert!(matches!(misfits_of(&examined).await, Ok(0)), "as it is now");
    }
}
