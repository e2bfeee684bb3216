//! The summary of deployments counts what the caller may see.

use serde_json::{Value, json};

use crate::{
    deployments::{Shop, until},
    environments::{in_force, open_gateway},
    harness::{Backend, Client, Setup, World, id},
};

on_both!(the_summary_counts_what_the_caller_may_see, a_summary_that_looks_at_less_than_all_says_so);

async fn counts(client: &Client) -> (Value, Value, Value) {
    let summary = client.get("/api/v1/deployments/summary").await.ok(200);
    (summary["active"].clone(), summary["total"].clone(), summary["complete"].clone())
}

fn are(active: i64, total: i64) -> (Value, Value, Value) {
    (json!(active), json!(total), json!(true))
}

async fn the_summary_counts_what_the_caller_may_see(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let there = shop.tenant.workspace("there").await;
    let other = id(&shop.tenant.agent(&there, "other").await);
    owner.create(&format!("/api/v1/agents/{other}/versions"), json!({})).await;
    let open = open_gateway(owner, &shop.gateway, "open").await;
    let mut made = Vec::new();
    for (agent, environment) in
        [(&shop.agent, "staging"), (&shop.agent, "staging"), (&shop.agent, "production"), (&other, "staging")]
    {
        let to = json!({ "gateway_id": open, "environment": environment });
        let accepted = owner.post(&format!("/api/v1/agents/{agent}/deploy"), to).await.ok(202);
        let deployment = accepted["deployment_id"].as_str().expect("an id").to_owned();
        until(owner, &deployment, "active").await;
        made.push(deployment);
    }
    let nobody = shop.tenant.stranger("nobody").await;
    let viewer = shop.tenant.person("viewer", "viewer").await;
    let local = shop.tenant.stranger("local").await;
    shop.tenant.grant(&local, "viewer", Some(&there)).await;
    let rival = shop.world.tenant("rival").await;
    for (client, active) in
        [(&**owner, 4), (&viewer.client, 4), (&local.client, 1), (&nobody.client, 0), (&rival.owner.client, 0)]
    {
        assert_eq!(counts(client).await, are(active, active));
        assert_eq!(client.all("/api/v1/deployments").await.len(), usize::try_from(active).expect("few"));
    }

    // By what a policy looks at, and by which one it is.
    in_force(
        owner,
        r#"@id("no-production") forbid (principal, action == Kaizen::Action::"deployment.read", resource)
           when { resource.environment == "production" } unless { principal in Kaizen::Role::"owner" };"#,
    )
    .await;
    assert_eq!((counts(owner).await, counts(&viewer).await), (are(4, 4), are(3, 3)));
    let one = format!(
        r#"@id("not-this") forbid (principal, action == Kaizen::Action::"deployment.read",
           resource == Kaizen::Deployment::"{}") unless {{ principal in Kaizen::Role::"owner" }};"#,
        made[0]
    );
    in_force(owner, &one).await;
    assert_eq!((counts(owner).await, counts(&viewer).await), (are(4, 4), are(3, 3)));
    in_force(owner, r#"forbid (principal, action == Kaizen::Action::"deployment.read", resource);"#).await;
    assert_eq!((counts(owner).await, counts(&viewer).await), (are(0, 0), are(0, 0)));
}

async fn a_summary_that_looks_at_less_than_all_says_so(backend: Backend) {
    let setup = Setup::new(backend).await.with("KAIZEN_LIST_ROWS", "201");
    let shop = Shop::on(World::with(setup).await).await;
    let owner = &shop.tenant.owner;
    let deployment = shop.deploy().await;
    shop.until(&deployment, "active").await;
    // 249 more of other people's, which nobody deployed.
    let mut direct = shop.world.setup.database.direct().await;
    for n in 0..249 {
        let id = match backend {
            Backend::Sqlite => format!("CAST(x'{n:032x}' AS BLOB)"),
            Backend::Postgres => format!("CAST('{n:032x}' AS UUID)"),
        };
        let sql = format!(
            "INSERT INTO deployments (id, organization_id, agent_id, version_id, version, gateway_id, environment, status,
                                      job_id, created_by, created_at, updated_at)
             SELECT {id}, organization_id, agent_id, version_id, version, gateway_id, environment, 'stopped', job_id, {id},
                    created_at, updated_at FROM deployments WHERE status = 'active'"
        );
        assert_eq!(direct.execute(&sql).await, 1);
    }
    assert_eq!(counts(owner).await, are(1, 250), "who sees all of them has them counted by the database");
    let local = shop.tenant.stranger("local").await;
    let workspace = owner.get("/api/v1/workspaces").await.ok(200);
    let workspaces = workspace["items"].as_array().expect("items").iter();
    for workspace in workspaces.map(id) {
        shop.tenant.grant(&local, "viewer", Some(&workspace)).await;
    }
    let (_, total, complete) = counts(&local).await;
    assert_eq!((total.as_i64().map(|total| total <= 201), complete), (Some(true), json!(false)));
}
