//! GitHub's REST API, version 2022-11-28, as the person who signs in.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kaizen_plugin::http::{Request, Response, retry_after};
use kaizen_plugin::{Error, Result, Secret, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Entries of a page; GitHub gives no more.
const PAGE: &str = "100";
/// Pages of one list that are read.
const MOST_PAGES: usize = 20;

/// Whose token it is.
#[derive(Deserialize)]
pub struct User {
    /// Never changes and is never given to another account.
    pub id: u64,
    /// Can be changed, and then be taken by somebody else.
    pub login: String,
    /// For people to read.
    pub name: Option<String>,
}

#[derive(Deserialize)]
struct Email {
    email: String,
    primary: bool,
    verified: bool,
}

#[derive(Deserialize)]
struct Organization {
    login: String,
}

#[derive(Deserialize)]
struct Team {
    slug: String,
    organization: Organization,
}

/// The API, with the token of the sign-in under way.
pub struct Api {
    base: Url,
}

impl Api {
    /// At this address.
    pub fn new(base: Url) -> Self {
        Self { base }
    }

    /// Whose token it is, once it is known to cover all that is asked with it.
    pub fn user(&self) -> Result<User> {
        let asked = get(&self.base.join(&["user"])?).and_then(|response| {
            check_scopes(response.header("x-oauth-scopes").unwrap_or_default())?;
            Ok(response.json()?)
        });
        asked.map_err(|error| error.context("/user"))
    }

    /// The primary address, if GitHub has verified it.
    pub fn verified_email(&self) -> Result<Option<String>> {
        let emails: Vec<Email> = self.all(&["user", "emails"])?;
        Ok(emails.into_iter().find(|email| email.primary && email.verified).map(|email| email.email))
    }

    /// The login names of the person's organizations, as far as the app may know of them.
    pub fn organizations(&self) -> Result<Vec<String>> {
        let organizations: Vec<Organization> = self.all(&["user", "orgs"])?;
        Ok(organizations.into_iter().map(|organization| organization.login).collect())
    }

    /// The person's teams, as `ORGANIZATION/TEAM`.
    pub fn teams(&self) -> Result<Vec<String>> {
        let teams: Vec<Team> = self.all(&["user", "teams"])?;
        Ok(teams.into_iter().map(|team| format!("{}/{}", team.organization.login, team.slug)).collect())
    }

    /// All pages of a list. A list that is not read to its end is an error: without an organization somebody would
    /// get other roles than theirs.
    fn all<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Vec<T>> {
        let what = format!("/{}", path.join("/"));
        let mut url = self.base.join(path)?.query("per_page", PAGE);
        let mut all = Vec::new();
        for _ in 0..MOST_PAGES {
            let response = get(&url).map_err(|error| error.context(&what))?;
            let page: Vec<T> = response.json().map_err(|error| Error::from(error).context(&what))?;
            all.extend(page);
            let Some(next) = response.next_link() else { return Ok(all) };
            let next = url.resolve(next).map_err(|error| Error::Rejected(format!("{what}: the next page: {error}")))?;
            // The token goes to the API and nowhere else, whatever a page says.
            if next.origin() != self.base.origin() {
                return Err(Error::Rejected(format!("{what}: the next page is said to be at {}", next.origin())));
            }
            url = next;
        }
        Err(Error::Rejected(format!("{what}: more than {MOST_PAGES} pages")))
    }
}

/// GitHub lists what a token of an OAuth app was granted, by commas. Fewer scopes than were asked for would make
/// organizations disappear, and give somebody other roles than theirs. Without any, and for a GitHub App, which has
/// permissions instead, the list is empty: GitHub then refuses what isn't granted.
fn check_scopes(granted: &str) -> Result<()> {
    let granted: Vec<&str> = granted.split(',').map(str::trim).filter(|scope| !scope.is_empty()).collect();
    let enough = [&["read:org", "write:org", "admin:org"][..], &["user:email", "user"][..]];
    match enough.iter().find(|any| !granted.is_empty() && !any.iter().any(|scope| granted.contains(scope))) {
        Some(any) => {
            let wanted = any.first().copied().unwrap_or_default();
            Err(Error::Rejected(format!(
                "GitHub did not grant `{wanted}`: sign in again, and let the app have what it asks for"
            )))
        }
        None => Ok(()),
    }
}

fn get(url: &Url) -> Result<Response> {
    let response = Request::get(url)
        .header("authorization", Secret::ACCESS_TOKEN.bearer())
        .header("accept", "application/vnd.github+json")
        .header("x-github-api-version", "2022-11-28")
        // GitHub refuses requests that don't say who makes them.
        .header("user-agent", "kaizen-studio")
        .send()?;
    if let Some(retry_after) = rate_limited(&response) {
        return Err(Error::Unavailable { message: "GitHub's rate limit is reached".to_owned(), retry_after });
    }
    response.success().map_err(|error| match error.status() {
        Some(404) => Error::Config(format!(
            "{url} answers 404: there is no GitHub API (see `url` and `api_url`), or the app lacks the permission to read this"
        )),
        _ => error.into(),
    })
}

/// GitHub says 403 (or 429) for "too many", which is nobody's fault: told from "not allowed" by the headers.
fn rate_limited(response: &Response) -> Option<Option<Duration>> {
    if !matches!(response.status, 403 | 429) {
        return None;
    }
    let now = SystemTime::now();
    if let Some(wait) =
        response.header("retry-after").and_then(|value| retry_after(value, response.header("date"), now))
    {
        return Some(Some(wait));
    }
    if response.header("x-ratelimit-remaining").map(str::trim) != Some("0") {
        return None;
    }
    let reset: Option<u64> = response.header("x-ratelimit-reset").and_then(|value| value.trim().parse().ok());
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Some(reset.map(|reset| Duration::from_secs(reset.saturating_sub(now))))
}
