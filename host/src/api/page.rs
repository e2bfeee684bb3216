//! Lists: `?limit=&cursor=` → `{"items":[…],"next_cursor":null|"…"}`, only what the caller may see, never cut silently.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::problem::{Fault, Problem, Result};
use crate::{
    app::App,
    authz::{Action, Resource},
    domain::principal::Principal,
    store::{Store, StoreError},
};

/// The page asked for.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// How many at the most, 1 to 200; 50 if absent.
    pub limit: Option<u16>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
}

/// A page of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Listed<T> {
    /// The items, oldest first.
    pub items: Vec<T>,
    /// Send as `cursor` for the next page; null at the end.
    pub next_cursor: Option<String>,
}

/// Rows read from the database at once while looking for what the caller may see.
const BATCH: i64 = 201;
/// Rows looked at for one page at the most; the page then ends early, with a cursor.
const SCAN: usize = 10_000;

impl Page {
    /// How many.
    ///
    /// # Errors
    /// 422 outside 1 to 200.
    pub fn limit(&self) -> Result<usize> {
        match self.limit {
            None => Ok(50),
            Some(limit @ 1..=200) => Ok(limit.into()),
            Some(_) => Err(Problem::invalid(vec![Fault::new("limit", "a whole number from 1 to 200")])),
        }
    }

    /// After which id; the nil UUID, which sorts first, at the beginning.
    ///
    /// # Errors
    /// 422 for a cursor that this server did not give.
    pub fn after(&self) -> Result<Uuid> {
        let Some(cursor) = &self.cursor else { return Ok(Uuid::nil()) };
        URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|bytes| Uuid::from_slice(&bytes).ok())
            .ok_or_else(|| Problem::invalid(vec![Fault::new("cursor", "send `next_cursor` as it was received")]))
    }
}

/// A cursor behind this id.
pub fn cursor(id: Uuid) -> String {
    URL_SAFE_NO_PAD.encode(id.as_bytes())
}

/// What can be listed: has an id to order by and can be asked about.
pub trait Item {
    /// Orders the list.
    fn id(&self) -> Uuid;
    /// What policies see of it.
    fn resource(&self) -> Resource;
}

/// Reads batches with `fetch(store, after, limit)` until the page is full of what the caller may see.
///
/// # Errors
/// As the database says; 422 for a page that makes no sense.
pub async fn visible<T, F, R>(
    app: &App,
    caller: &Principal,
    action: Action,
    page: &Page,
    mut fetch: F,
) -> Result<Listed<T>>
where
    T: Item,
    F: FnMut(Store, Uuid, i64) -> R,
    R: Future<Output = std::result::Result<Vec<T>, StoreError>>,
{
    let limit = page.limit()?;
    let mut after = page.after()?;
    let mut items: Vec<T> = Vec::with_capacity(limit.min(64));
    let mut scanned = 0;
    // One row more than wanted tells whether there is a next page.
    let batch = i64::try_from(limit + 1).unwrap_or(BATCH).min(BATCH);
    loop {
        let rows = fetch(app.store.clone(), after, batch).await?;
        let last_batch = rows.len() < usize::try_from(batch).unwrap_or(usize::MAX);
        scanned += rows.len();
        let resources: Vec<Resource> = rows.iter().map(Item::resource).collect();
        let allowed = app.authz.filter(&app.store, caller, action, &resources).await?;
        for (row, allowed) in rows.into_iter().zip(allowed) {
            if allowed {
                if items.len() == limit {
                    let next_cursor = items.last().map(|item| cursor(item.id()));
                    return Ok(Listed { items, next_cursor });
                }
                after = row.id();
                items.push(row);
            } else {
                after = row.id();
            }
        }
        if last_batch {
            return Ok(Listed { items, next_cursor: None });
        }
        if scanned >= SCAN {
            return Ok(Listed { items, next_cursor: Some(cursor(after)) });
        }
    }
}
