//! Lists: `?limit=&cursor=` → `{"items":[…],"next_cursor":null|"…"}`, only what the caller may see, never cut silently.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
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
    /// How many items the page may have. It may have fewer, or none, and be followed by others: only `next_cursor` tells whether it
    /// is the last.
    #[param(minimum = 1, maximum = 200, default = 50, example = 100)]
    #[serde(default, deserialize_with = "limit")]
    limit: Option<u16>,
    /// `next_cursor` of the page before, as it was received; absent for the first page.
    #[param(
        min_length = 22,
        max_length = 22,
        pattern = "^[A-Za-z0-9_-]{21}[AQgw]$",
        example = "AZosTns9fxCKXC6dS2-MAQ"
    )]
    pub cursor: Option<String>,
}

/// A page of a list: what the caller may see, in order.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Listed<T> {
    /// The items of the page.
    #[schema(max_items = 200)]
    pub items: Vec<T>,
    /// Send it as `cursor` for the next page; null on the last one.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

/// Rows read from the database at once, at the most, while looking for what the caller may see.
const BATCH: usize = 201;

/// How many rows to read next. A short page of somebody who may see little would take a statement for every few rows, so
/// batches double as long as rows are missed.
struct Batches {
    rows: usize,
    scanned: usize,
    most: usize,
}

impl Batches {
    /// For a page of `limit`, looking at `most` rows. One row more than wanted tells whether there is a next page.
    fn new(limit: usize, most: usize) -> Self {
        Self { rows: (limit + 1).min(BATCH), scanned: 0, most }
    }

    /// Rows of the next batch.
    fn next(&self) -> i64 {
        i64::try_from(self.rows).unwrap_or(i64::MAX)
    }

    /// So many were read, of which the caller may see so many. Whether there are more to read, and whether it is time to.
    fn read(&mut self, rows: usize, visible: usize) -> Progress {
        let last = rows < self.rows;
        self.scanned += rows;
        if visible < rows {
            self.rows = (self.rows * 2).min(BATCH);
        }
        match (last, self.scanned >= self.most) {
            (true, _) => Progress::End,
            (false, true) => Progress::Enough,
            (false, false) => Progress::More,
        }
    }
}

/// What comes after a batch.
#[derive(Debug, PartialEq)]
enum Progress {
    /// Another one.
    More,
    /// Nothing now: as many rows as one request may look at; the page ends early, with a cursor.
    Enough,
    /// Nothing: there are no more rows.
    End,
}

/// What is no number has the same answer as one that is too large.
fn limit<'de, D: Deserializer<'de>>(text: D) -> std::result::Result<Option<u16>, D::Error> {
    let limit = String::deserialize(text)?.parse::<u16>().ok().filter(|limit| (1..=200).contains(limit));
    limit.map(Some).ok_or_else(|| D::Error::custom("a whole number from 1 to 200"))
}

impl Page {
    /// How many.
    pub fn limit(&self) -> usize {
        self.limit.map_or(50, usize::from)
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
    let limit = page.limit();
    let mut after = page.after()?;
    let mut items: Vec<T> = Vec::with_capacity(limit.min(64));
    let mut batches = Batches::new(limit, app.config.limits.list_rows);
    loop {
        let rows = fetch(app.store.clone(), after, batches.next()).await?;
        let resources: Vec<Resource> = rows.iter().map(Item::resource).collect();
        let allowed = app.authz.filter(&app.store, caller, action, &resources).await?;
        let progress = batches.read(rows.len(), allowed.iter().filter(|allowed| **allowed).count());
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
        match progress {
            Progress::More => {}
            Progress::Enough => return Ok(Listed { items, next_cursor: Some(cursor(after)) }),
            Progress::End => return Ok(Listed { items, next_cursor: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use utoipa::IntoParams;
    use uuid::Uuid;

    use super::{BATCH, Batches, Page, Progress, cursor};

    /// The statements that one page takes of somebody who may see one row in `sees`, of `rows`.
    fn statements(limit: usize, rows: usize, sees: usize) -> (usize, Progress) {
        let (mut batches, mut statements, mut at, mut seen) = (Batches::new(limit, 10_000), 0, 0, 0);
        loop {
            let read = usize::try_from(batches.next()).unwrap().min(rows - at);
            let visible = (at..at + read).filter(|row| (row + 1) % sees == 0).count();
            (statements, at, seen) = (statements + 1, at + read, seen + visible);
            match batches.read(read, visible) {
                Progress::More if seen <= limit => {}
                progress => return (statements, progress),
            }
        }
    }

    #[test]
    fn a_short_page_of_who_may_see_nothing_takes_few_statements() {
        assert_eq!(statements(1, 10_000, usize::MAX), (56, Progress::End));
        assert_eq!(statements(1, 1_000_000, usize::MAX), (56, Progress::Enough));
        assert_eq!(statements(50, 1_000_000, usize::MAX), (51, Progress::Enough));
        assert_eq!(statements(200, 1_000_000, usize::MAX), (50, Progress::Enough));
    }

    #[test]
    fn who_sees_everything_reads_one_row_more_than_the_page_has() {
        assert_eq!((Batches::new(1, 10_000).next(), Batches::new(200, 10_000).next()), (2, 201));
        for limit in [1, 50, 200] {
            assert_eq!(statements(limit, 10_000, 1), (1, Progress::More));
        }
        assert_eq!(statements(50, 10, 1), (1, Progress::End));
        assert_eq!(statements(10, 10_000, 100).1, Progress::More);
    }

    #[test]
    fn no_batch_is_larger_than_a_page_can_be() {
        let mut batches = Batches::new(1, 10_000);
        while batches.read(batches.rows, 0) == Progress::More {
            assert!(batches.rows <= BATCH);
        }
    }

    #[test]
    fn the_parameters_of_a_page_are_documented_as_they_are_read() {
        let parameters = serde_json::to_value(Page::into_params(|| None)).unwrap();
        let (limit, after) = (&parameters[0]["schema"], &parameters[1]["schema"]);
        let read =
            |limit: u64| serde_json::from_value::<Page>(serde_json::json!({ "limit": limit.to_string() })).is_ok();
        let bound = |name: &str| limit[name].as_u64().unwrap();
        assert!(read(bound("minimum")) && !read(bound("minimum") - 1));
        assert!(read(bound("maximum")) && !read(bound("maximum") + 1));
        assert_eq!(u64::try_from(Page::default().limit()).unwrap(), bound("default"));
        for id in [Uuid::nil(), Uuid::max(), Uuid::from_u128(1)] {
            let given = cursor(id);
            assert_eq!(given.len() as u64, after["maxLength"].as_u64().unwrap());
            assert!(given.ends_with(['A', 'Q', 'g', 'w']), "{given}");
            assert_eq!(Page { limit: None, cursor: Some(given) }.after().unwrap(), id);
        }
    }
}
