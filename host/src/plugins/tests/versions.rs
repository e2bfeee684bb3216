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
async fn a_connection_that_changed_since_it_was_looked_at_is_looked_at_again() {
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
        let fit = async |examined: &Examined| {
            let mut tx = fixture.store.begin().await.unwrap();
            misfits(&mut tx, (&candidate.plugin, examined), plugin, version).await.map(drop)
        };
        assert!(matches!(fit(&examined).await, Err(ChangeError::Moved)), "it was not looked at");
        for _ in 0..2 {
            examined.look(&fixture.store, &candidate.plugin, (plugin.kind, &plugin.name), &version.line).await.unwrap();
            assert!(fit(&examined).await.is_ok());
            let mut tx = fixture.store.begin().await.unwrap();
            let sql = "UPDATE connections SET revision = revision + 1 WHERE kind = 'audit_sink'";
            on!(&mut tx, |c| sqlx::query(sql).execute(c).await.map(drop)).unwrap();
            tx.commit().await.unwrap();
            assert!(matches!(fit(&examined).await, Err(ChangeError::Moved)), "it changed");
        }
    }
}
