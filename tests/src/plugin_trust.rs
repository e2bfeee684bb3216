//! What lies on disk and in the database is trusted only as far as it is signed, or was made by this server.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::{
    harness::{Backend, Chameleon, Setup, World, id},
    plugin_refusals::random,
    plugins::{PLUGINS, activate, installed, runs, sink, upload},
};

on_both!(
    with_trusted_keys_only_what_they_signed_is_installed_and_runs,
    a_key_that_is_no_longer_trusted_takes_its_plugins_with_it,
    a_folder_is_read_at_the_start_and_what_is_bad_in_it_stops_nothing,
);

/// A key made by the command line; the file and the public half.
async fn key(setup: &Setup, name: &str) -> (String, String) {
    let file = setup.dir().join(name).display().to_string();
    let made = setup.run(&["plugin", "keygen", "--out", &file], "").await;
    assert!(made.status.success(), "{}", made.stderr);
    (file, made.stdout.trim().to_owned())
}

/// A component as a file, signed with the command line.
async fn signed(setup: &Setup, component: &Chameleon, key: &str) -> (PathBuf, String) {
    let file = setup.dir().join("signed.wasm");
    std::fs::write(&file, component.wasm()).expect("written");
    let path = file.display().to_string();
    let ran = setup.run(&["plugin", "sign", "--key", key, &path], "").await;
    assert!(ran.status.success(), "{}", ran.stderr);
    let signature = std::fs::read_to_string(format!("{path}.sig")).expect("a signature");
    (file, signature)
}

async fn with_trusted_keys_only_what_they_signed_is_installed_and_runs(backend: Backend) {
    let setup = Setup::new(backend).await;
    let ((ours, our_public), (theirs, _)) = (key(&setup, "ours.key").await, key(&setup, "theirs.key").await);
    let mut world = World::with(setup.with("KAIZEN_PLUGINS_TRUSTED_KEYS", &our_public)).await;
    let operator = world.operator().await;
    let admin = operator.owner.client.clone();
    let component = Chameleon::version("1.0.0");
    let wasm = component.wasm();
    let attempt = async |signature: Option<&str>, wasm: &[u8]| {
        let mut parts = vec![("component", wasm)];
        parts.extend(signature.map(|text| ("signature", text.as_bytes())));
        admin.multipart(PLUGINS, &parts, &[]).await
    };
    let why = attempt(None, &wasm).await.fault("/signature");
    assert!(why.contains("not signed") && why.contains("plugins_trusted_keys"), "{why}");
    let foreign = signed(&world.setup, &component, &theirs).await.1;
    let why = attempt(Some(&foreign), &wasm).await.fault("/signature");
    assert!(why.contains("not among plugins_trusted_keys"), "{why}");
    let good = signed(&world.setup, &component, &ours).await.1;
    let why = attempt(Some(&good), &Chameleon::version("1.0.1").wasm()).await.fault("/signature");
    assert!(why.contains("does not fit"), "{why}");
    // Their signature under our name.
    let forged = format!("{our_public}:{}", foreign.trim().rsplit_once(':').expect("a signature").1);
    let why = attempt(Some(&forged), &wasm).await.fault("/signature");
    assert!(why.contains("does not fit"), "{why}");
    let uploaded = attempt(Some(&good), &wasm).await.ok(201);
    assert_eq!(uploaded["version"]["signer"], our_public);
    let path = format!("{PLUGINS}/{}", id(&uploaded));
    activate(&admin, &path, "1.0.0").await.ok(200);
    let sink = sink(&admin, "s", None, json!({})).await;
    assert_eq!(runs(&admin, &sink).await, "chameleon 1.0.0");

    // Bytes that were changed behind the server's back do not run, signed or not; what comes with the server does.
    let mut database = world.setup.database.direct().await;
    let digest = uploaded["version"]["digest"].as_str().expect("text");
    let nothing = match backend {
        Backend::Sqlite => "zeroblob(100)",
        Backend::Postgres => "'\\x00'::bytea",
    };
    let changed =
        database.execute(&format!("UPDATE plugin_artifacts SET wasm = {nothing} WHERE digest = '{digest}'")).await;
    assert_eq!(changed, 1);
    world.server.stop().await;
    world.again().await;
    let problem = admin.post(&format!("{sink}/check"), json!({})).await.problem(502, "upstream");
    assert!(problem["detail"].as_str().expect("text").contains("not what was installed"), "{problem}");
    let shown = admin.get(&path).await.ok(200);
    assert!(shown["versions"][0]["failure"].as_str().expect("why").contains("not what was installed"), "{shown}");
    let file = json!({ "name": "f", "plugin": "file", "active": false });
    let file = id(&admin.create("/api/v1/audit-sinks", file).await);
    admin.post(&format!("/api/v1/audit-sinks/{file}/check"), json!({})).await.ok(200);
}

async fn a_key_that_is_no_longer_trusted_takes_its_plugins_with_it(backend: Backend) {
    let setup = Setup::new(backend).await;
    let ((ours, our_public), (_, next)) = (key(&setup, "ours.key").await, key(&setup, "next.key").await);
    let mut world = World::with(setup.with("KAIZEN_PLUGINS_TRUSTED_KEYS", &our_public)).await;
    let operator = world.operator().await;
    let admin = operator.owner.client.clone();
    let component = Chameleon::version("1.0.0");
    let signature = signed(&world.setup, &component, &ours).await.1;
    let parts = [("component", &*component.wasm()), ("signature", signature.as_bytes())];
    let path = format!("{PLUGINS}/{}", id(&admin.multipart(PLUGINS, &parts, &[]).await.ok(201)));
    activate(&admin, &path, "1.0.0").await.ok(200);
    let sink = sink(&admin, "s", None, json!({})).await;
    world.server.stop().await;
    let server = world.setup.start_beside_with(&[("KAIZEN_PLUGINS_TRUSTED_KEYS", &next)]).await;
    let admin = admin.at(&server.url);
    let problem = admin.post(&format!("{sink}/check"), json!({})).await.problem(502, "upstream");
    assert!(problem["detail"].as_str().expect("text").contains("not among plugins_trusted_keys"), "{problem}");
}

async fn a_folder_is_read_at_the_start_and_what_is_bad_in_it_stops_nothing(backend: Backend) {
    let setup = Setup::new(backend).await;
    let folder = setup.dir().join("plugins");
    std::fs::create_dir(&folder).expect("a folder");
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).expect("written");
    put("good.wasm", &Chameleon::version("1.0.0").wasm());
    put("broken.wasm", &random(2000));
    put("liar.wasm", &Chameleon::version("1.0.0").with("name", json!("liar")).with("http", json!([])).wasm());
    put("unsigned.wasm", &Chameleon::version("1.0.0").with("name", json!("signed-badly")).wasm());
    put("unsigned.wasm.sig", b"nonsense");
    put("large.wasm", &vec![0; 2 << 20]);
    std::fs::create_dir(folder.join("folder.wasm")).expect("a folder");
    put("notes.txt", b"not a plugin");
    let setup = setup
        .with("KAIZEN_PLUGINS_DIR", folder.display().to_string())
        .with("KAIZEN_PLUGINS_MAX_BYTES", (1 << 20).to_string());
    let mut world = World::with(setup).await;
    let log = world.server.log();
    for (file, why) in [
        ("broken.wasm", "not a WebAssembly component"),
        ("liar.wasm", "asks for no `http` capability"),
        ("unsigned.wasm", "not a signature"),
        ("large.wasm", "plugins_max_bytes"),
        ("folder.wasm", "not a file"),
    ] {
        let said = log.lines().any(|line| line.contains(file) && line.contains(why));
        assert!(said, "{file} is refused for `{why}`:\n{log}");
    }
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let owner = &tenant.owner;
    let names = async || {
        let items = owner.all(PLUGINS).await;
        items.into_iter().filter(|p| p["versions"][0]["origin"] == "folder").collect::<Vec<Value>>()
    };
    let listed = names().await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((&listed[0]["name"], &listed[0]["active_version"]), (&json!("chameleon"), &json!("1.0.0")));
    let sink = sink(owner, "s", None, json!({})).await;
    assert_eq!(runs(owner, &sink).await, "chameleon 1.0.0");

    // A newer one is used from the next start; one that reaches more waits for a person, and so does another major version.
    put("newer.wasm", &Chameleon::version("1.0.1").wasm());
    put("wider.wasm", &Chameleon::version("1.0.2").with("http", json!(["{config.url}", "https://*"])).wasm());
    put("major.wasm", &Chameleon::version("2.0.0").wasm());
    put("clash.wasm", &Chameleon::version("1.0.0").with("title", json!("Another")).wasm());
    world.server.stop().await;
    world.again().await;
    assert_eq!(runs(owner, &sink).await, "chameleon 1.0.1");
    let versions = names().await[0]["versions"].as_array().expect("versions").len();
    assert_eq!(versions, 4);
    let log = world.server.log();
    assert!(log.contains("1.0.2 installed and not activated (it reaches more: http https://*)"), "{log}");
    assert!(
        log.lines().any(|line| line.contains("clash.wasm") && line.contains("give yours another version")),
        "{log}"
    );
    // The operator's trail says what came in, and was activated.
    let events = operator.owner.all("/api/v1/audit/events").await;
    let told = events.iter().filter(|event| event["action"] == "plugin.create");
    let told: Vec<_> = told.map(|e| (e["actor"].clone(), e["details"]["changes"].clone())).collect();
    let told: Vec<_> =
        told.iter().map(|(by, what)| format!("{by} {} {}", what["version"], what["activated"])).collect();
    let expected = ["2.0.0\" false", "1.0.1\" true", "1.0.2\" false"].map(|said| format!("\"system\" \"{said}"));
    assert_eq!(told, expected, "{events:?}");
    assert!(!owner.all("/api/v1/audit/events").await.iter().any(|event| event["action"] == "plugin.create"));
    // Nothing of it is asked or done again at the next one.
    world.server.stop().await;
    world.again().await;
    assert!(!world.server.log().contains("installed and"), "{}", world.server.log());
}

/// The compiled components in a server's data folder.
pub fn compiled(setup: &Setup) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(setup.data_dir().join("compiled")).expect("a folder").filter_map(Result::ok);
    let paths = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "compiled"));
    let mut paths: Vec<_> = paths.collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn a_compiled_component_that_was_tampered_with_is_compiled_again_and_never_loaded() {
    let mut world = World::start(Backend::Sqlite).await;
    let operator = world.operator().await;
    let admin = operator.owner.client.clone();
    let component = Chameleon::version("1.0.0");
    let uploaded = upload(&admin, &component).await.ok(201);
    let path = format!("{PLUGINS}/{}", id(&uploaded));
    activate(&admin, &path, "1.0.0").await.ok(200);
    let sink = sink(&admin, "s", None, json!({})).await;
    let digest = uploaded["version"]["digest"].as_str().expect("text").to_owned();
    let files = compiled(&world.setup);
    let own = files.iter().find(|path| path.display().to_string().contains(&digest)).expect("compiled").clone();
    let other = files.iter().find(|path| **path != own).expect("a bundled one").clone();
    let good = std::fs::read(&own).expect("read");
    let machine_code = good.len() / 2;
    let mut flipped = good.clone();
    flipped[machine_code] ^= 1;
    let foreign = std::fs::read(&other).expect("read");
    for (what, bad) in
        [("a bit flipped", flipped), ("cut short", good[..machine_code].to_vec()), ("another's", foreign)]
    {
        world.server.stop().await;
        std::fs::write(&own, bad).expect("written");
        world.again().await;
        let log = world.server.log();
        assert!(log.lines().any(|l| l.contains(&digest) && l.contains("compiling again")), "{what}: {log}");
        assert_eq!(runs(&admin, &sink).await, "chameleon 1.0.0", "{what}");
        assert_eq!(std::fs::read(&own).expect("read"), good, "{what}: the file is made anew");
    }
    // Of another build: its name and its seal are of another engine, so it is not even opened.
    world.server.stop().await;
    let stem = own.file_name().expect("a name").to_string_lossy().into_owned();
    let renamed =
        own.with_file_name(stem.replace(stem.rsplit_once('-').expect("an engine").1, "0123456789abcdef.compiled"));
    std::fs::rename(&own, &renamed).expect("renamed");
    world.again().await;
    assert_eq!(runs(&admin, &sink).await, "chameleon 1.0.0");
    assert_eq!(std::fs::read(&own).expect("made anew"), good);
    // And without any, everything is only slower.
    world.server.stop().await;
    std::fs::remove_dir_all(world.setup.data_dir().join("compiled")).expect("removed");
    world.again().await;
    assert_eq!(runs(&admin, &sink).await, "chameleon 1.0.0");
    assert_eq!(std::fs::read(&own).expect("kept again"), good);
}

#[tokio::test]
async fn nobody_gets_around_signatures_by_writing_that_a_plugin_came_with_the_server() {
    let setup = Setup::new(Backend::Sqlite).await;
    let public = key(&setup, "ours.key").await.1;
    let mut world = World::with(setup).await;
    let operator = world.operator().await;
    let admin = operator.owner.client.clone();
    let path = installed(&admin, &Chameleon::version("1.0.0")).await;
    let sink = sink(&admin, "s", None, json!({})).await;
    assert_eq!(runs(&admin, &sink).await, "chameleon 1.0.0");
    world.server.stop().await;
    // With the seal of one that did.
    let mut database = world.setup.database.direct().await;
    let forged = database.execute(
        "UPDATE plugin_versions SET origin = 'bundled',
                signature = (SELECT MAX(signature) FROM plugin_versions WHERE origin = 'bundled' AND signer IS NULL)
         WHERE origin = 'uploaded'",
    );
    assert_eq!(forged.await, 1);
    let server = world.setup.start_beside_with(&[("KAIZEN_PLUGINS_TRUSTED_KEYS", &public)]).await;
    let admin = admin.at(&server.url);
    let problem = admin.post(&format!("{sink}/check"), json!({})).await.problem(502, "upstream");
    assert!(problem["detail"].as_str().expect("text").contains("not signed"), "{problem}");
    assert!(admin.get(&path).await.ok(200)["versions"][0]["failure"].is_string());
    // What did come with it needs no signature, also where a later server no longer has it in its binary.
    let unsealed = "SELECT COUNT(*) FROM plugin_versions WHERE origin = 'bundled' AND signature IS NULL";
    assert_eq!(database.number(unsealed).await, 0);
}

#[tokio::test]
async fn check_refuses_what_the_server_would_refuse() {
    let setup = Setup::new(Backend::Sqlite).await;
    let ((ours, our_public), (theirs, _)) = (key(&setup, "ours.key").await, key(&setup, "theirs.key").await);
    let component = Chameleon::version("1.0.0").with("title", json!("\u{1b}[2JNothing"));
    let (file, _) = signed(&setup, &component, &theirs).await;
    let path = file.display().to_string();
    let plain = setup.run(&["plugin", "check", &path], "").await;
    assert!(plain.status.success() && !plain.stdout.contains('\u{1b}'), "{}{}", plain.stdout, plain.stderr);
    let setup = setup.with("KAIZEN_PLUGINS_TRUSTED_KEYS", format!("audit-sink/cha*@{our_public}"));
    let refused = setup.run(&["plugin", "check", &path], "").await;
    assert!(
        !refused.status.success() && refused.stderr.contains("not among plugins_trusted_keys"),
        "{}",
        refused.stderr
    );
    signed(&setup, &component, &ours).await;
    let taken = setup.run(&["plugin", "check", &path], "").await;
    assert!(taken.status.success() && taken.stdout.contains(&our_public), "{}{}", taken.stdout, taken.stderr);
    // The key counts for other names.
    let other = component.clone().with("name", json!("other"));
    signed(&setup, &other, &ours).await;
    let refused = setup.run(&["plugin", "check", &path], "").await;
    assert!(!refused.status.success() && refused.stderr.contains("audit-sink/cha*"), "{}", refused.stderr);
    signed(&setup, &component, &ours).await;
    let setup = setup.with("KAIZEN_PLUGINS_MAX_BYTES", "2000");
    let refused = setup.run(&["plugin", "check", &path], "").await;
    assert!(!refused.status.success() && refused.stderr.contains("plugins_max_bytes"), "{}", refused.stderr);
    let wavers = component.with("wavers", json!(true));
    let setup = setup.with("KAIZEN_PLUGINS_MAX_BYTES", "10000000");
    signed(&setup, &wavers, &ours).await;
    let refused = setup.run(&["plugin", "check", &path], "").await;
    assert!(!refused.status.success() && refused.stderr.contains("the same each time"), "{}", refused.stderr);
}
