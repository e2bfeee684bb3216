//! Plugins of any name, version and capabilities, from one build: see `plugins/testing/chameleon`.

use std::{path::PathBuf, process::Command, sync::OnceLock};

use serde_json::{Value, json};

const MARKER: &[u8] = b"KZTEST-MANIFEST:";
/// Bytes of the marker and the manifest behind it.
const LENGTH: usize = 8192;

/// What the component is to say of itself.
#[derive(Clone)]
pub struct Chameleon(Value);

impl Chameleon {
    /// An audit sink that asks for the host of its own configuration.
    pub fn version(version: &str) -> Self {
        Self(json!({
            "name": "chameleon", "version": version, "title": "Chameleon", "description": "It takes any colour.",
            "schema": { "type": "object", "additionalProperties": false, "properties": {
                "url": { "type": "string", "format": "uri" }, "fail": { "type": "string" } } },
            "secrets": [], "http": ["{config.url}"], "reveal": [], "directories": [],
        }))
    }

    /// With another value of one property.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.0[name] = value;
        self
    }

    /// The component.
    pub fn wasm(&self) -> Vec<u8> {
        let mut wasm = built().to_vec();
        let mut found =
            wasm.windows(MARKER.len()).enumerate().filter(|(_, window)| *window == MARKER).map(|(at, _)| at);
        let at = found.next().expect("the marker");
        assert!(found.next().is_none(), "the marker is there once");
        let manifest = self.0.to_string();
        let room = &mut wasm[at + MARKER.len()..at + LENGTH];
        assert!(manifest.len() <= room.len(), "too long");
        room.fill(b' ');
        room[..manifest.len()].copy_from_slice(manifest.as_bytes());
        wasm
    }
}

impl Chameleon {
    /// The component, made this many bytes longer by a custom section, as debugging information or an interpreter would.
    pub fn longer(&self, by: u32) -> Vec<u8> {
        let mut wasm = self.wasm();
        wasm.push(0);
        let mut length = by + 2;
        while length >= 0x80 {
            wasm.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        wasm.extend([length as u8, 1, b'x']);
        // Nothing that a database or a connection could make smaller.
        wasm.extend((0..by).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8));
        wasm
    }
}

/// The component as built: from `KZTEST_GUESTS`, where `tests/run` has put it, or made now.
fn built() -> &'static [u8] {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = std::env::var_os("KZTEST_GUESTS").map_or_else(build, PathBuf::from);
        std::fs::read(folder.join("testing_chameleon.wasm")).expect("testing_chameleon.wasm")
    })
}

fn build() -> PathBuf {
    let here = std::env::current_exe().expect("the path of this test");
    let target = here.ancestors().nth(3).expect("target folder").join("plugins");
    let plugins = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../plugins");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(plugins).args(["build", "--quiet", "--release", "--locked", "--package", "testing-chameleon"]);
    cargo.args(["--target", "wasm32-wasip2", "--target-dir"]).arg(&target);
    // What tells cargo about the build of these tests.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let kept = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTRIES_"].iter().any(|k| text.starts_with(k));
        if !kept && (text.starts_with("CARGO") || text.starts_with("RUSTFLAGS") || text.starts_with("RUSTC")) {
            cargo.env_remove(&name);
        }
    }
    assert!(cargo.status().expect("cargo").success(), "the testing plugin does not build");
    target.join("wasm32-wasip2/release")
}
