//! The groups that a person is in, from the token or from Microsoft Graph.

use kaizen_plugin::http::Request;
use kaizen_plugin::identity::{Grant, MOST_GROUPS};
use kaizen_plugin::{Error, Result, Secret, Url, log};
use serde::Deserialize;
use serde_json::Value;

use crate::Config;

/// Members of a page; Graph gives no more.
const PAGE: &str = "999";
/// Pages that are read. Roles and administrative units take room on them too.
const MOST_PAGES: usize = 10;

/// A page of Graph's (OData 4).
#[derive(Deserialize)]
struct Page {
    value: Vec<Member>,
    #[serde(rename = "@odata.nextLink")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Member {
    #[serde(rename = "@odata.type")]
    kind: Option<String>,
    id: String,
}

/// The groups, as the token has them; from Graph where it says that they were too many for it.
pub fn of(config: &Config, grant: &Grant) -> Result<Vec<String>> {
    if !overage(grant) {
        return grant.groups("groups");
    }
    log::info!("the token leaves the groups out: asking {}", config.graph_url.authority());
    from_graph(config).map_err(|error| error.context("the groups, which were too many for the token"))
}

/// Groups were left out: `_claim_names` tells where else they are (OpenID Connect Core 1.0, section 5.6.2), or
/// `hasgroups` that there are some. Entra's own address for them is of a retired interface (Azure AD Graph), so only the
/// sign counts.
fn overage(grant: &Grant) -> bool {
    let elsewhere = grant.claims.get("_claim_names").and_then(|names| names.get("groups")).is_some();
    let some = match grant.claims.get("hasgroups") {
        Some(Value::Bool(said)) => *said,
        Some(Value::String(said)) => said == "true",
        _ => false,
    };
    elsewhere || some
}

fn from_graph(config: &Config) -> Result<Vec<String>> {
    let mut groups = Vec::new();
    let mut url =
        config.graph_url.join(&["v1.0", "me", "transitiveMemberOf"])?.query("$select", "id").query("$top", PAGE);
    for _ in 0..MOST_PAGES {
        let response = Request::get(&url)
            .header("authorization", Secret::ACCESS_TOKEN.bearer())
            .header("accept", "application/json")
            .send()?
            .success()?;
        let page: Page = response.json()?;
        // Directory roles and administrative units are no groups.
        let is_group = |member: &Member| member.kind.as_deref().is_none_or(|kind| kind == "#microsoft.graph.group");
        groups.extend(page.value.into_iter().filter(is_group).map(|member| member.id));
        if groups.len() > MOST_GROUPS {
            return Err(Error::Rejected(format!(
                "more than {MOST_GROUPS}: in Entra, let the groups claim have only groups assigned to the application"
            )));
        }
        let Some(next) = page.next else { return Ok(groups) };
        url = next_page(config, &next)?;
    }
    Err(Error::Rejected(format!("more than {MOST_PAGES} pages of them")))
}

/// The token goes to Graph and nowhere else, whatever a page says.
fn next_page(config: &Config, link: &str) -> Result<Url> {
    let url = Url::parse(link).map_err(|error| Error::Rejected(format!("the next page: {error}")))?;
    if url.origin() == config.graph_url.origin() {
        Ok(url)
    } else {
        Err(Error::Rejected(format!("the next page is said to be at {}, which is not `graph_url`", url.origin())))
    }
}
