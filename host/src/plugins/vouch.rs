//! Which components came with a server of ours, and so need no signature.
//!
//! That a row of the database says so is not enough: whoever can write there can write that too. Beside the row lies a seal
//! under the master key over the component's digest, made when a server took in what is part of its own binary. It holds on
//! every host of the same key and after an upgrade; `kaizen admin rotate-key` renews it, and so does each start for what is
//! part of the binary.

use crate::{
    clock::Clock,
    secrets::{Secrets, SecretsError},
    store::{Store, StoreError, plugins as rows},
};

fn place(digest: &str) -> Vec<u8> {
    format!("plugins/bundled/{digest}").into_bytes()
}

/// The seal of a component that is part of this binary, for the row of its version.
///
/// # Errors
/// If the library refuses.
pub(super) fn seal(keys: &Secrets, clock: &Clock, digest: &str) -> Result<String, SecretsError> {
    keys.seal(clock, &place(digest), b"").map(hex::encode)
}

/// Whether a version's seal holds.
pub(super) fn holds(keys: &Secrets, row: &rows::Version) -> bool {
    let sealed = row.signature.as_deref().filter(|_| row.signer.is_none());
    let sealed = sealed.and_then(|digits| hex::decode(digits).ok());
    sealed.is_some_and(|sealed| keys.open(&place(&row.digest), &sealed).is_ok())
}

/// Renews the seals that hold under the current key. What does not hold is left: it counts for nothing.
pub(super) async fn reseal(store: &Store, keys: &Secrets, clock: &Clock) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    for row in rows::all_versions(&mut tx).await?.into_iter().filter(|row| holds(keys, row)) {
        let sealed = row.signature.as_deref().and_then(|digits| hex::decode(digits).ok()).unwrap_or_default();
        if let Ok(Some(renewed)) = keys.reseal(clock, &place(&row.digest), &sealed) {
            rows::put_version(&mut tx, &rows::Version { signature: Some(hex::encode(renewed)), ..row }).await?;
        }
    }
    tx.commit().await
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::{domain::connection::Kind, domain::plugin::Origin, jobs::fixture::Fixture};

    fn version(plugin_id: Uuid, digest: &str, signature: Option<String>) -> rows::Version {
        rows::Version {
            plugin_id,
            version: format!("1.0.{}", digest.len()),
            line: "1".into(),
            digest: digest.into(),
            size: 1,
            origin: Origin::Bundled,
            signer: None,
            signature,
            manifest: "{}".into(),
            enabled: true,
            created_by: None,
            created_at: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn only_a_seal_of_ours_over_this_component_counts() {
        let (keys, clock) = (Secrets::new([1; 32]), Clock::system());
        let sealed = seal(&keys, &clock, "aa").unwrap();
        let row = |digest, signature| version(Uuid::nil(), digest, signature);
        assert!(holds(&keys, &row("aa", Some(sealed.clone()))));
        assert!(!holds(&keys, &row("bbb", Some(sealed.clone()))), "of another component");
        assert!(!holds(&Secrets::new([2; 32]), &row("aa", Some(sealed.clone()))), "of another server");
        assert!(!holds(&keys, &row("aa", None)) && !holds(&keys, &row("aa", Some("00".into()))));
        let signed = rows::Version { signer: Some("ed25519:00".into()), ..row("aa", Some(sealed)) };
        assert!(!holds(&keys, &signed), "a signature is not a seal");
    }

    #[tokio::test]
    async fn a_new_master_key_renews_what_holds_and_nothing_else() {
        for fixture in Fixture::each().await {
            let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::system());
            let set = [("data_dir".to_owned(), folder.path().display().to_string())];
            let config = crate::config::Config::load(None, [], set).unwrap();
            let old = Secrets::load(&config, &clock).unwrap();
            let now = DateTime::UNIX_EPOCH;
            let plugin = rows::Plugin {
                id: Uuid::from_u128(1),
                kind: Kind::AuditSink,
                name: "kept".into(),
                active_version: None,
                created_at: now,
                updated_at: now,
                revision: 1,
            };
            let forged = seal(&Secrets::new([9; 32]), &clock, "bbb").unwrap();
            let mut tx = fixture.store.begin().await.unwrap();
            rows::insert(&mut tx, &plugin).await.unwrap();
            for (digest, signature) in [("aa", seal(&old, &clock, "aa").unwrap()), ("bbb", forged)] {
                rows::put_artifact(&mut tx, digest, b"w", now).await.unwrap();
                rows::put_version(&mut tx, &version(plugin.id, digest, Some(signature))).await.unwrap();
            }
            tx.commit().await.unwrap();

            let rotation = crate::secrets::Rotation::begin(folder.path(), &clock).unwrap();
            let keys = Secrets::load(&config, &clock).unwrap();
            reseal(&fixture.store, &keys, &clock).await.unwrap();
            rotation.finish().unwrap();
            std::fs::remove_file(folder.path().join("master.key.retired")).unwrap();
            let new = Secrets::load(&config, &clock).unwrap();
            let rows = rows::all_versions(&mut fixture.store.read().await.unwrap()).await.unwrap();
            let held: Vec<_> = rows.iter().map(|row| (row.digest.as_str(), holds(&new, row))).collect();
            assert_eq!(held, [("aa", true), ("bbb", false)]);
        }
    }
}
