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

#[tokio::test]
async fn on_a_terminal_the_deployment_has_a_progress_bar() {
    // With the log as it is unless asked for more: it does not write into the story.
    let setup = Setup::new(Backend::Sqlite).await.without("KAIZEN_EGRESS_ALLOW_PRIVATE").without("KAIZEN_LOG");
    let (status, output) = setup.run_on_a_terminal(&["demo", "--exit"]).await;
    assert!(status.success(), "{status}\n{output}");
    // What was drawn over on the way, and what stays: each frame begins by erasing the line.
    let frames: Vec<&str> = output.split("\u{1b}[2K").collect();
    assert!(frames.iter().any(|frame| frame.contains("0% ") && !frame.contains("100%")), "it begins: {output:?}");
    let full = format!("  ✓ [{}] 100% Active", "━".repeat(32));
    assert!(output.lines().any(|line| line.ends_with(&full)), "it stays, full: {output:?}");
    for told in ["  ✓ deployed: http://", "All of it held"] {
        assert!(output.lines().any(|line| line.starts_with(told)), "a bar is in front of `{told}`: {output:?}");
    }
}
