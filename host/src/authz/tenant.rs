//! Compiled policy sets of tenants, by version. A version never changes, so a compiled one never goes stale; which
//! version is in force is read with every request.

use std::sync::Arc;

use moka::future::Cache;

use super::{
    index::{Index, Origin},
    schema::Shared,
    text,
};
use crate::{
    domain::id::{OrganizationId, PolicyVersionId},
    store::{self, Store, StoreError},
};

/// Bytes of policy text whose compiled form is kept; the compiled form takes some twenty times as much.
const CAPACITY: u64 = 16 * 1024 * 1024;

/// One compiled version, or why there is none.
pub(super) struct Compiled {
    pub(super) index: Result<Index, String>,
    weight: u32,
}

/// The cache.
pub(super) struct Tenants {
    cache: Cache<(OrganizationId, PolicyVersionId), Arc<Compiled>>,
}

impl Tenants {
    pub(super) fn new() -> Self {
        let weigher = |_: &_, compiled: &Arc<Compiled>| compiled.weight;
        Self { cache: Cache::builder().max_capacity(CAPACITY).weigher(weigher).build() }
    }

    /// The compiled version; read and compiled on a miss, once however many ask at the same time.
    ///
    /// # Errors
    /// If it cannot be read now; nothing is remembered then.
    pub(super) async fn get(
        &self,
        vocabulary: &Shared,
        store: &Store,
        organization: OrganizationId,
        version: PolicyVersionId,
    ) -> Result<Arc<Compiled>, Arc<StoreError>> {
        let key = (organization, version);
        if let Some(compiled) = self.cache.get(&key).await {
            return Ok(compiled);
        }
        self.cache.try_get_with(key, load(vocabulary.clone(), store.clone(), organization, version)).await
    }
}

async fn load(
    vocabulary: Shared,
    store: Store,
    organization: OrganizationId,
    version: PolicyVersionId,
) -> Result<Arc<Compiled>, StoreError> {
    let mut conn = store.read().await?;
    let text = store::policies::text(&mut conn, organization, version).await?;
    drop(conn);
    let Some(text) = text else {
        let why = "the policy version in force is not there".to_owned();
        return Ok(Arc::new(Compiled { index: Err(why), weight: 256 }));
    };
    let weight = u32::try_from(text.len()).unwrap_or(u32::MAX).saturating_add(4096);
    let compiled = tokio::task::spawn_blocking(move || compile(&vocabulary, &text)).await;
    let index = compiled.unwrap_or_else(|_| Err("compiling the policy set failed".to_owned()));
    if let Err(why) = &index {
        tracing::error!(%organization, %version, why, "a policy set in force cannot be used");
    }
    Ok(Arc::new(Compiled { index, weight }))
}

/// Reads and groups; what was validated when it was stored is not validated again.
pub(super) fn compile(vocabulary: &Shared, source: &str) -> Result<Index, String> {
    let told = |faults: Vec<text::PolicyFault>| {
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        format!("the policy set in force cannot be used: {}", faults.join("; "))
    };
    let parsed = text::parse(source).map_err(told)?;
    text::deep(|| Index::compile(vocabulary, Origin::Tenant, &parsed.policies))
        .map_err(told)?
        .map_err(|error| format!("the policy set in force cannot be compiled: {error}"))
}
