//! `kaizen plugin new`: a project that builds and passes its own check as it is.
//!
//! Everything but the packages of the language's own registry comes out of this binary: the interfaces of `wit/`, the
//! library for Rust, the templates of `plugins/templates`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use include_dir::{Dir, DirEntry, include_dir};

static WIT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../wit");
static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../plugins/sdk");
static TEMPLATES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../plugins/templates");
/// The versions that the library was tested with.
static LOCK: &str = include_str!("../../../../plugins/Cargo.lock");
static WORKSPACE: &str = include_str!("../../../../plugins/Cargo.toml");

/// Start a plugin: a project that builds and passes its own check as it is
#[derive(Debug, Args)]
pub struct New {
    /// What the plugin is for
    #[arg(long, value_enum)]
    kind: PluginKind,
    /// What it is written in
    #[arg(long, value_enum)]
    language: Language,
    /// Its name, lower-case words joined by hyphens; the folder is called the same
    name: String,
    /// Where to make the folder [default: here]
    #[arg(long, value_name = "FOLDER")]
    path: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PluginKind {
    /// Takes audit events away
    AuditSink,
    /// Deploys agents somewhere
    DeploymentTarget,
    /// Says who signs people in
    IdentityProvider,
}

impl PluginKind {
    /// As its WIT package, its world and the templates' files are called.
    fn wit(self) -> &'static str {
        match self {
            PluginKind::AuditSink => "audit-sink",
            PluginKind::DeploymentTarget => "deployment-target",
            PluginKind::IdentityProvider => "identity-provider",
        }
    }

    /// Whether the template speaks HTTP.
    fn http(self) -> bool {
        self != PluginKind::IdentityProvider
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    /// Small and quick: 0.3 MB, microseconds
    Rust,
    /// With componentize-js: 12 MB
    Typescript,
    /// With componentize-py: 19 MB
    Python,
}

impl New {
    /// Runs to its end.
    ///
    /// # Errors
    /// If the name is none, or the folder is there already.
    pub fn run(&self) -> anyhow::Result<()> {
        let words = self.name.split('-');
        let good = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let starts = self.name.starts_with(|c: char| c.is_ascii_lowercase());
        anyhow::ensure!(
            self.name.len() <= 64 && starts && words.clone().all(good),
            "`{}` is no name for a plugin: lower-case words joined by hyphens, such as `our-collector`",
            self.name
        );
        let crates = ["alloc", "core", "kaizen-plugin", "std"];
        anyhow::ensure!(
            self.language != Language::Rust || !crates.contains(&self.name.as_str()),
            "`{}` is no name for a plugin in Rust: a crate that it uses is called so",
            self.name
        );
        let folder = self.path.clone().unwrap_or_default().join(&self.name);
        if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        // Nothing that is there already is written over.
        fs::create_dir(&folder).with_context(|| {
            format!("cannot make the folder {}: take another NAME or --path if it is there already", folder.display())
        })?;
        let project = Project { new: self, folder: &folder };
        project.write()?;
        let shown = folder.display();
        super::super::print(&format!(
            "{shown} is a plugin. Next:\n\
             kaizen plugin build {shown}\n\
             kaizen plugin check {shown}/dist/{name}.wasm\n\
             kaizen plugin test {shown}/dist/{name}.wasm",
            name = self.name
        ))
    }
}

struct Project<'a> {
    new: &'a New,
    folder: &'a Path,
}

impl Project<'_> {
    fn write(&self) -> anyhow::Result<()> {
        let kind = self.new.kind;
        match self.new.language {
            Language::Rust => {
                self.template("rust/Cargo.toml", "Cargo.toml")?;
                self.template(&format!("rust/{}.rs", kind.wit()), "src/lib.rs")?;
                self.file("Cargo.lock", LOCK)?;
                self.folder(&SDK, Path::new("vendor/plugins/sdk"))?;
                self.file("vendor/plugins/sdk/Cargo.toml", &sdk_manifest()?)?;
                self.folder(&WIT, Path::new("vendor/wit"))?;
                self.file(".gitignore", "/dist/\n/target/\n")?;
            }
            Language::Typescript => {
                for file in [
                    "package.json",
                    "package-lock.json",
                    "tsconfig.json",
                    "build.mjs",
                    "test.mjs",
                    "src/kaizen.ts",
                    "src/host.d.ts",
                ] {
                    self.template(&format!("typescript/{file}"), file)?;
                }
                if kind == PluginKind::DeploymentTarget {
                    self.template("typescript/src/progress.d.ts", "src/progress.d.ts")?;
                }
                self.template(&format!("typescript/src/{}.ts", kind.wit()), "src/plugin.ts")?;
                self.template(&format!("typescript/test/{}.test.js", kind.wit()), "test/plugin.test.js")?;
                self.interfaces(false)?;
                self.file(".gitignore", "/dist/\n/node_modules/\n")?;
            }
            Language::Python => {
                self.template("python/requirements.txt", "requirements.txt")?;
                self.template("python/kaizen.py", "kaizen.py")?;
                if kind.http() {
                    self.template("python/kaizen_http.py", "kaizen_http.py")?;
                }
                self.template(&format!("python/{}.py", kind.wit()), "app.py")?;
                self.template(&format!("python/test-{}.py", kind.wit()), "test_app.py")?;
                self.interfaces(kind.http())?;
                self.file(".gitignore", "/bindings/\n/dist/\n/.venv/\n__pycache__/\n")?;
            }
        }
        self.template("README.md", "README.md")
    }

    /// `wit/`, in the form that the tools of TypeScript and Python read: a world of the plugin's own, the packages it is
    /// made of in `deps/`.
    fn interfaces(&self, http: bool) -> anyhow::Result<()> {
        let kind = self.new.kind.wit();
        let mut world = format!("package local:plugin;\n\nworld plugin {{\n  include kaizen:{kind}/{kind}@0.1.0;\n");
        if http {
            world += "  import wasi:http/outgoing-handler@0.2.12;\n";
        }
        self.file("wit/plugin.wit", &(world + "}\n"))?;
        for package in ["plugin", kind] {
            let name = format!("{package}/{package}.wit");
            self.file(&format!("wit/deps/kaizen-{package}/{package}.wit"), text(&WIT, &name)?)?;
        }
        if http {
            for package in ["io", "clocks", "http"] {
                let file = text(&TEMPLATES, &format!("wasi/{package}.wit"))?;
                self.file(&format!("wit/deps/wasi-{package}/{package}.wit"), file)?;
            }
        }
        Ok(())
    }

    fn template(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let (name, kind) = (&self.new.name, self.new.kind);
        let mut title = name.replace('-', " ");
        if let Some(first) = title.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        let (source, tests, run_tests) = match self.new.language {
            Language::Rust => ("src/lib.rs", "src/lib.rs", "cargo test"),
            Language::Typescript => ("src/plugin.ts", "test/plugin.test.js", "npm test"),
            Language::Python => (
                "app.py",
                "test_app.py",
                ".venv/bin/componentize-py -d wit -w plugin bindings bindings    # once: what `wit_world` is outside of a component\n\
                 PYTHONPATH=bindings .venv/bin/python -m unittest",
            ),
        };
        let disabled = if kind.http() { "\"fetch-event\"" } else { "\"http\", \"fetch-event\"" };
        let filled = text(&TEMPLATES, from)?
            .replace("{{name}}", name)
            .replace("{{title}}", &title)
            .replace("{{kind}}", &kind.wit().replace('-', " "))
            .replace("{{source}}", source)
            .replace("{{tests}}", tests)
            .replace("{{run_tests}}", run_tests)
            .replace("{{disabled}}", disabled);
        // componentize-py names a module after its interface, and after its package too where two interfaces share a name:
        // `types` is also one of `wasi:http`.
        let filled = if kind.http() { filled } else { filled.replace("kaizen_plugin_types", "types") };
        self.file(to, &filled)
    }

    fn folder(&self, from: &Dir<'_>, to: &Path) -> anyhow::Result<()> {
        for entry in from.entries() {
            match entry {
                DirEntry::Dir(inner) => self.folder(inner, &to.join(inner.path().file_name().unwrap_or_default()))?,
                DirEntry::File(file) => {
                    let path = to.join(file.path().file_name().unwrap_or_default());
                    self.file(&path.to_string_lossy(), file.contents_utf8().context("a text file")?)?;
                }
            }
        }
        Ok(())
    }

    fn file(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(path);
        let write = || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::File::create(&path)?.write_all(text.as_bytes())
        };
        write().with_context(|| path.display().to_string())
    }
}

fn text<'a>(from: &'a Dir<'_>, path: &str) -> anyhow::Result<&'a str> {
    from.get_file(path)
        .and_then(|file| file.contents_utf8())
        .with_context(|| format!("{path} is not part of this binary"))
}

/// The library's `Cargo.toml` without the workspace that it has here.
fn sdk_manifest() -> anyhow::Result<String> {
    let workspace: toml::Table = WORKSPACE.parse()?;
    let shared = |section: &str, key: &str| workspace.get("workspace")?.get(section)?.get(key).cloned();
    let mut manifest: toml::Table = text(&SDK, "Cargo.toml")?.parse()?;
    manifest.remove("lints");
    for (section, from) in [("package", "package"), ("dependencies", "dependencies")] {
        let Some(toml::Value::Table(table)) = manifest.get_mut(section) else { continue };
        for (key, value) in table.iter_mut() {
            if value.get("workspace") == Some(&toml::Value::Boolean(true)) {
                *value = shared(from, key).with_context(|| format!("{key} of plugins/Cargo.toml"))?;
            }
        }
    }
    Ok(toml::to_string(&manifest)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_stands_alone() {
        let manifest: toml::Table = sdk_manifest().unwrap().parse().unwrap();
        assert!(!manifest.to_string().contains("workspace"), "{manifest}");
        assert_eq!(manifest["package"]["edition"].as_str(), Some("2024"));
        assert!(manifest["dependencies"]["serde"]["features"].is_array());
    }

    #[test]
    fn a_project_is_whole_and_nothing_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        for language in [Language::Rust, Language::Typescript, Language::Python] {
            for kind in [PluginKind::AuditSink, PluginKind::DeploymentTarget, PluginKind::IdentityProvider] {
                let name = format!("{}-{kind:?}", format!("{language:?}").to_lowercase()).to_lowercase();
                let new = New { kind, language, name: name.clone(), path: Some(folder.path().to_owned()) };
                new.run().unwrap();
                assert!(new.run().unwrap_err().to_string().contains(&name));
                let mut folders = vec![folder.path().join(&name)];
                while let Some(next) = folders.pop() {
                    for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
                        let path = entry.path();
                        if path.is_dir() {
                            folders.push(path);
                        } else if !path.starts_with(folder.path().join(&name).join("vendor")) {
                            let text = fs::read_to_string(&path).unwrap();
                            assert!(!text.replace("{{secret:", "").contains("{{"), "{}", path.display());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_name_is_a_name() {
        for name in
            ["", "std", "kaizen-plugin", "Sink", "my--sink", "-sink", "../sink", "9sink", "my_sink", &"a".repeat(65)]
        {
            let new = New {
                kind: PluginKind::AuditSink,
                language: Language::Rust,
                name: name.to_owned(),
                path: Some("/nonexistent/never".into()),
            };
            assert!(new.run().unwrap_err().to_string().contains("is no name"), "{name}");
        }
    }
}
