//! Signing in elsewhere, as far as it takes no provider.

use crate::{
    domain::client::Client,
    identity::{
        failures::Visit,
        secret::Opaque,
        sso::{Callback, Desk, SsoError},
    },
    jobs::fixture::Fixture,
    on,
};

/// Anybody can make up a state and a cookie, and SQLite has one writer.
#[tokio::test]
async fn a_made_up_state_takes_no_write_lock() {
    for fixture in Fixture::each().await {
        let app = fixture.app().await;
        let mut writer = fixture.store.begin().await.unwrap();
        if fixture.store.is_shared() {
            let sql = "LOCK TABLE sso_states IN EXCLUSIVE MODE";
            on!(&mut writer, |c| sqlx::query(sql).execute(c).await.map(drop)).unwrap();
        }
        let [state, cookie] = [(); 2].map(|()| Opaque::random(&app.clock).encode());
        let desk = Desk {
            store: &app.store,
            clock: &app.clock,
            plugins: &app.plugins,
            secrets: &app.secrets,
            allowances: &app.allowances,
            redirect_uri: "https://studio.example.com/auth/sso/callback",
        };
        let callback = Callback { state: &state, code: Some("c"), error: None, description: None, iss: None };
        let visit = Visit { client: Client::UNKNOWN, user_agent: "" };
        let finished = app.identity.finish_sso(&desk, &callback, Some(&cookie), &visit).await;
        let error = finished.err().map(|failed| failed.error);
        assert!(matches!(error, Some(SsoError::State)), "{error:?}");
        writer.rollback().await.unwrap();
    }
}
