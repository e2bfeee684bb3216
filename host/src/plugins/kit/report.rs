//! What came of it: a table for people, JUnit XML for machines.

use std::{collections::BTreeMap, fmt::Write as _};

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use serde_json::Value;

use super::{
    Row,
    verdict::{Outcome, Verdict},
};
use crate::{domain::connection::Kind, plugins::Manifest};

/// Characters of a message that the table shows.
const MESSAGE: usize = 100;

/// The whole of a test.
#[derive(Debug)]
pub struct Report {
    /// The plugin.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its kind.
    pub kind: Kind,
    /// The configuration that it was tested with.
    pub config: Value,
    /// Whether the kit made it up.
    pub made_up: bool,
    /// Each call.
    pub rows: Vec<Row>,
    /// What else there is to know: what was moved, what cannot come about.
    pub notes: Vec<String>,
}

impl Report {
    pub(super) fn new(kind: Kind, manifest: &Manifest, config: Value, made_up: bool) -> Self {
        Self {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            kind,
            config,
            made_up,
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Calls that are clearly wrong.
    pub fn wrong(&self) -> usize {
        self.rows.iter().filter(|row| matches!(row.verdict, Verdict::Wrong(_))).count()
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let source = if self.made_up { "made up from the manifest's schema" } else { "as given" };
        let kind = self.kind.as_str().replace('_', " ");
        // Writing to a String does not fail.
        let _ = writeln!(text, "{} {} ({kind}); configuration {source}: {}\n", self.name, self.version, self.config);
        let width = |cells: &dyn Fn(&Row) -> usize, least| self.shown().map(cells).max().unwrap_or(0).max(least);
        let situations = width(&|row| row.situation.name().chars().count(), 9);
        let exports = width(&|row| row.export.len(), 6);
        let _ = writeln!(
            text,
            "{:situations$}  {:exports$}  {:>8}  {:<11}  {:<5}  {:>5}  {:>7}  verdict",
            "situation", "export", "requests", "outcome", "retry", "after", "seconds"
        );
        for row in self.shown() {
            let retried = row.outcome.retried().map_or("-", |retried| if retried { "yes" } else { "no" });
            let wait = row.outcome.wait().map_or("-".to_owned(), |wait| format!("{} s", wait.as_secs()));
            let (mark, why) = match &row.verdict {
                Verdict::Good | Verdict::Untouched => ("ok", None),
                Verdict::Note(why) => ("note", Some(*why)),
                Verdict::Wrong(why) => ("WRONG", Some(*why)),
            };
            let _ = writeln!(
                text,
                "{:situations$}  {:exports$}  {:>8}  {:<11}  {retried:<5}  {wait:>5}  {:>7.2}  {mark:<5}  {}",
                row.situation.name(),
                row.export,
                row.contacts,
                row.outcome.word(),
                row.took.as_secs_f64(),
                shortened(&row.outcome.message()),
            );
            if let Some(why) = why {
                let _ = writeln!(text, "{:situations$}  {:exports$}  `- {why}", "", "");
            }
        }
        let mut untouched: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.verdict == Verdict::Untouched) {
            untouched.entry(row.export).or_default().push(row.situation.name());
        }
        for (export, situations) in untouched {
            let _ = writeln!(
                text,
                "\n{export} succeeded without asking the far side, so these did not come about: {}.",
                situations.join("; ")
            );
        }
        for note in &self.notes {
            let _ = writeln!(text, "\n{note}");
        }
        let (calls, wrong) = (self.shown().count(), self.wrong());
        let _ = write!(text, "\n{calls} calls, {wrong} wrong");
        text
    }

    fn shown(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.verdict != Verdict::Untouched)
    }

    /// For machines: a suite for the plugin, a case for each call. What is wrong fails, what did not come about is skipped.
    ///
    /// # Errors
    /// If it cannot be written as XML.
    pub fn junit(&self) -> Result<String, quick_junit::SerializeError> {
        let mut suite = TestSuite::new(format!("{} {}", self.name, self.version));
        for row in &self.rows {
            let mut status = match &row.verdict {
                Verdict::Good | Verdict::Note(_) => TestCaseStatus::success(),
                Verdict::Untouched => TestCaseStatus::skipped(),
                Verdict::Wrong(_) => TestCaseStatus::non_success(NonSuccessKind::Failure),
            };
            if row.verdict == Verdict::Untouched {
                status.set_message("it succeeded without asking the far side");
            }
            if let Verdict::Wrong(why) = &row.verdict {
                status.set_message(*why);
                status.set_description(row.outcome.message());
            }
            let mut case = TestCase::new(row.situation.name(), status);
            case.set_classname(format!("{}.{}", self.name, row.export)).set_time(row.took);
            let retried = match row.outcome {
                Outcome::Done(_) => "",
                _ if row.outcome.retried() == Some(true) => ", retried",
                _ => ", not retried",
            };
            let note = match &row.verdict {
                Verdict::Note(why) => format!("\nnote: {why}"),
                _ => String::new(),
            };
            case.set_system_out(format!("{}{retried}: {}{note}", row.outcome.word(), row.outcome.message()));
            suite.add_test_case(case);
        }
        let mut report = quick_junit::Report::new(format!("kaizen plugin test {}", self.name));
        report.add_test_suite(suite);
        report.to_string()
    }
}

/// On one line of a screen.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE).collect();
    if text.chars().count() > MESSAGE {
        short.push('…');
    }
    short
}
