//! What the demo prints: a line a step, a progress bar, a table.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::print;

/// Characters of a progress bar.
const BAR: usize = 32;

/// Tells the story on standard output.
pub struct Screen {
    begun: Instant,
}

impl Screen {
    /// Begins.
    pub fn new() -> Self {
        Self { begun: Instant::now() }
    }

    /// A heading.
    ///
    /// # Errors
    /// If nobody reads standard output any more.
    pub fn part(&self, title: &str) -> anyhow::Result<()> {
        print(&format!("\n{title}"))
    }

    /// A step that held.
    ///
    /// # Errors
    /// If nobody reads standard output any more.
    pub fn held(&self, what: &str) -> anyhow::Result<()> {
        print(&format!("  ✓ {what}"))
    }

    /// More about the last step.
    ///
    /// # Errors
    /// If nobody reads standard output any more.
    pub fn detail(&self, what: &str) -> anyhow::Result<()> {
        print(&format!("      {what}"))
    }

    /// A progress bar; without a terminal, nothing. To be given to [`Screen::full`].
    pub fn bar(&self, what: &str) -> ProgressBar {
        let bar = ProgressBar::new(100).with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template(&format!("  {{spinner}} [{{bar:{BAR}}}] {{pos:>3}}% {{msg}}")) {
            bar.set_style(style.progress_chars("━╸ "));
        }
        bar.enable_steady_tick(Duration::from_millis(80));
        bar
    }

    /// What the bar was for is done. It stays on the screen, as a line like the others: a deployment may take less time than
    /// a look at it.
    ///
    /// # Errors
    /// If nobody reads standard output any more.
    pub fn full(&self, bar: &ProgressBar) -> anyhow::Result<()> {
        let shown = !bar.is_hidden();
        bar.finish_and_clear();
        if shown { self.held(&format!("[{}] 100% {}", "━".repeat(BAR), bar.message())) } else { Ok(()) }
    }

    /// Seconds since the beginning.
    pub fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}
