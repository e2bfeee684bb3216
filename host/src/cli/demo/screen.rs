//! What the demo prints: a line a step, a progress bar, a table.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::print;

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
        style(&bar, "{spinner}");
        bar.enable_steady_tick(Duration::from_millis(80));
        bar
    }

    /// What the bar was for is done. It stays on the screen: a deployment may take less time than a look at it.
    pub fn full(&self, bar: &ProgressBar) {
        style(bar, "✓");
        bar.finish();
    }

    /// Seconds since the beginning.
    pub fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}

fn style(bar: &ProgressBar, sign: &str) {
    if let Ok(style) = ProgressStyle::with_template(&format!("  {sign} [{{bar:32}}] {{pos:>3}}% {{msg}}")) {
        bar.set_style(style.progress_chars("━╸ "));
    }
}
