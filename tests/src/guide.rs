//! The author's guide, `plugins/README.md`, followed word for word: its `sh` blocks, one after the other, in an empty folder.

use std::path::Path;

use super::authoring::{repository, shell};
use crate::harness::free_port;

/// The fenced `sh` blocks of a page.
pub fn blocks(page: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(page).expect("the page");
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        match &mut open {
            None if line == "```sh" => open = Some(String::new()),
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
            None => {}
        }
    }
    blocks
}

async fn follow(language: &str) {
    let folder = tempfile::Builder::new().prefix("kztest-guide-").tempdir().expect("a folder");
    let blocks = blocks(&repository().join("plugins/README.md"));
    assert!(blocks.len() > 8, "the guide has its blocks: {}", blocks.len());
    let listen = format!("127.0.0.1:{}", free_port());
    let ops = format!("127.0.0.1:{}", free_port());
    let environment =
        [("LANGUAGE", language), ("KAIZEN_LISTEN", &listen), ("KAIZEN_OPS_LISTEN", &ops), ("KAIZEN_LOG", "info")];
    let said = shell(&blocks.join("\n"), folder.path(), &environment).await;
    let last = said.lines().last().unwrap_or_default().trim();
    assert!(last.parse::<u32>().is_ok_and(|events| events >= 1), "the event arrived, with its token: {said}");
    let log = std::fs::read_to_string(folder.path().join("server.log")).expect("its log");
    assert!(!log.contains("s3cret-token"), "a secret never reaches the log");
}

#[tokio::test]
async fn a_stranger_gets_a_sink_in_rust() {
    follow("rust").await;
}

#[tokio::test]
async fn a_stranger_gets_a_sink_in_typescript() {
    follow("typescript").await;
}

#[tokio::test]
async fn a_stranger_gets_a_sink_in_python() {
    follow("python").await;
}
