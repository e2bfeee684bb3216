//! The first command of the README.

use crate::harness::{Backend, Setup};

on_both!(the_demo_holds_and_ends);

async fn the_demo_holds_and_ends(backend: Backend) {
    let setup = Setup::new(backend).await.without("KAIZEN_EGRESS_ALLOW_PRIVATE").without("KAIZEN_MASTER_KEY");
    for run in ["the first", "a later"] {
        let ran = setup.run(&["demo", "--exit"], "").await;
        assert!(ran.status.success(), "{run} run: {}\n{}\n{}", ran.status, ran.stdout, ran.stderr);
        for told in ["signed in", "canvas", "deployed", "gateway", "403", "audit trail", "verifies", "All of it held"] {
            assert!(ran.stdout.contains(told), "{run} run does not tell of `{told}`:\n{}", ran.stdout);
        }
        assert!(!ran.stdout.contains("panicked") && !ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
}
