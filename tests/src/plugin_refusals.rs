//! What is wrong with a plugin is found at the door, named, and leaves nothing behind.

use serde_json::json;

use crate::{
    harness::{Backend, Chameleon, Setup, World, eventually, id},
    plugin_trust::compiled,
    plugins::{PLUGINS, activate, installed, runs, sink, upload},
};

on_both!(
    what_is_wrong_is_named_and_nothing_is_kept,
    only_platform_administrators_install,
    what_was_acknowledged_survives_a_kill,
    what_is_large_arrives_and_what_is_cut_short_does_not,
);

pub fn random(length: usize) -> Vec<u8> {
    // xorshift64: no two runs differ.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

async fn what_is_wrong_is_named_and_nothing_is_kept(backend: Backend) {
    let size = Chameleon::version("1.0.0").wasm().len();
    let setup = Setup::new(backend).await.with("KAIZEN_PLUGINS_MAX_BYTES", (size + 100).to_string());
    let world = World::with(setup).await;
    let operator = world.operator().await;
    let admin = &operator.owner;
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    let mut database = world.setup.database.direct().await;
    const KEPT: &str = "SELECT (SELECT COUNT(*) FROM plugin_artifacts) + 1000 * (SELECT COUNT(*) FROM plugin_versions)
                        + 1000000 * (SELECT COUNT(*) FROM plugins)";
    let kept = database.number(KEPT).await;
    let before = admin.get(PLUGINS).await.ok(200);

    let good = Chameleon::version("1.1.0");
    let whole = good.wasm();
    let bytes: Vec<(Vec<u8>, &str)> = vec![
        (random(5000), "not a WebAssembly component"),
        (b"\0asm\x01\0\0\0".to_vec(), "core module"),
        (b"\0asm\x0d\0\x01\0".to_vec(), "it exports none of"),
        (whole[..whole.len() / 2].to_vec(), "not a WebAssembly component"),
        (whole[..whole.len() - 1].to_vec(), "not a WebAssembly component"),
        ([b"\0asm\x0d\0\x01\0".as_slice(), &random(3000)].concat(), "not a WebAssembly component"),
    ];
    for (component, expected) in bytes {
        let why = admin.multipart(PLUGINS, &[("component", &component)], &[]).await.fault("/component");
        assert!(why.contains(expected), "expected `{expected}`: {why}");
    }
    let lies: Vec<(Chameleon, &str)> = vec![
        (good.clone().with("schema", json!({ "type": "nonsense" })), "config-schema"),
        (good.clone().with("schema", json!("{ not JSON")), "config-schema"),
        (good.clone().with("schema", json!([])), "config-schema"),
        (good.clone().with("schema", json!({ "$ref": "https://evil.example/schema" })), "config-schema"),
        (good.clone().with("schema", json!({ "$ref": "#" })), "leads back to itself"),
        (good.clone().with("name", json!("Chameleon")), "lower-case words"),
        (good.clone().with("name", json!("../../etc/passwd")), "lower-case words"),
        (good.clone().with("version", json!("1.1")), "semantic version"),
        (good.clone().with("version", json!("latest")), "semantic version"),
        (good.clone().with("title", json!("")), "title"),
        (good.clone().with("http", json!(["ftp://{config.url}"])), "http"),
        (good.clone().with("http", json!(["{config.other}"])), "not in config-schema"),
        (good.clone().with("reveal", json!(["other"])), "no such secret"),
        (good.clone().with("directories", json!(["../etc"])), "directory"),
        // It imports HTTP and says that it needs none; it says something else each time.
        (good.clone().with("http", json!([])), "asks for no `http` capability"),
        (good.clone().with("wavers", json!(true)), "does not say the same each time"),
    ];
    for (component, expected) in lies {
        let why = upload(admin, &component).await.fault("/component");
        assert!(why.contains(expected), "expected `{expected}`: {why}");
    }
    // The parts themselves.
    let large = [whole.as_slice(), &[0; 101]].concat();
    let problem = admin.multipart(PLUGINS, &[("component", &large)], &[]).await.problem(413, "too_large");
    assert!(problem["detail"].as_str().expect("text").contains("plugins_max_bytes"), "{problem}");
    admin.multipart(PLUGINS, &[], &[]).await.fault("/component");
    admin.multipart(PLUGINS, &[("component", b"")], &[]).await.fault("/component");
    admin.multipart(PLUGINS, &[("component", &whole), ("component", &whole)], &[]).await.fault("/component");
    admin.multipart(PLUGINS, &[("component", &whole), ("more", b"x")], &[]).await.fault("/more");
    admin.multipart(PLUGINS, &[("component", &whole), ("signature", b"nonsense")], &[]).await.fault("/signature");
    let large = vec![b'a'; 5000];
    admin.multipart(PLUGINS, &[("component", &whole), ("signature", &large)], &[]).await.problem(413, "too_large");
    admin.post(PLUGINS, json!({ "component": "x" })).await.problem(415, "unsupported_media_type");

    assert_eq!(database.number(KEPT).await, kept, "nothing is half-written");
    assert_eq!(admin.get(PLUGINS).await.ok(200), before);
    let sink = sink(admin, "s", None, json!({})).await;
    assert_eq!(runs(admin, &sink).await, "chameleon 1.0.0");
    upload(admin, &good).await.ok(201);
    assert!(admin.get(&path).await.ok(200)["versions"].as_array().expect("versions").len() == 2);
}

/// What Python and JavaScript are compiled to has this size.
const LARGE: u32 = 18 << 20;

async fn what_is_large_arrives_and_what_is_cut_short_does_not(backend: Backend) {
    let world = World::with(Setup::new(backend).await.with("KAIZEN_PLUGINS_MAX_BYTES", (20 << 20).to_string())).await;
    let operator = world.operator().await;
    let admin = &operator.owner;
    let large = Chameleon::version("1.0.0").longer(LARGE);
    let uploaded = admin.multipart(PLUGINS, &[("component", &large)], &[]).await.ok(201);
    assert_eq!(uploaded["version"]["size"], large.len());
    let path = format!("{PLUGINS}/{}", id(&uploaded));
    activate(admin, &path, "1.0.0").await.ok(200);
    let sink = sink(admin, "s", None, json!({})).await;
    assert_eq!(runs(admin, &sink).await, "chameleon 1.0.0");
    let files = compiled(&world.setup);

    let send = async |media: &str, body: Vec<u8>| {
        let token = admin.token.clone().expect("signed in");
        let request = admin.http.post(format!("{}{PLUGINS}", admin.base)).bearer_auth(token);
        let answer = request.header("content-type", media).body(body).send().await?;
        Ok::<_, reqwest::Error>(crate::harness::Answer::read("POST an upload".into(), answer).await)
    };
    let refused = async |media: &str, body: Vec<u8>| send(media, body).await.expect("an answer");
    let form = "multipart/form-data; boundary=b";
    let head = b"--b\r\ncontent-disposition: form-data; name=\"component\"\r\n\r\n";
    let whole = Chameleon::version("1.1.0").wasm();
    refused(form, [head.as_slice(), &whole].concat()).await.problem(400, "malformed");
    refused(form, b"--b\r\ncontent-disposition: form-data; na".to_vec()).await.problem(400, "malformed");
    refused(form, Vec::new()).await.problem(400, "malformed");
    // What is refused in its middle is read to its end, so that the client learns why.
    let askew = [b"--b\r\nno header\r\n\r\n".as_slice(), &vec![b'a'; 6 << 20]].concat();
    refused(form, askew).await.problem(400, "malformed");
    refused("multipart/form-data", whole.clone()).await.problem(415, "unsupported_media_type");
    refused("application/octet-stream", whole.clone()).await.problem(415, "unsupported_media_type");
    // A header without an end is not collected for ever: whoever goes on sending may find the connection closed before the answer.
    let endless = [b"--b\r\ncontent-disposition: ".as_slice(), &vec![b'a'; 40 << 20]].concat();
    if let Ok(answer) = send(form, endless).await {
        answer.problem(413, "too_large");
    }
    // A connection that ends half-way leaves the server as it was.
    let address = admin.base.strip_prefix("http://").expect("an address");
    for _ in 0..4 {
        let mut connection = tokio::net::TcpStream::connect(address).await.expect("connected");
        let token = admin.token.as_deref().expect("signed in");
        let head = format!(
            "POST {PLUGINS} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\ncontent-type: {form}\r\n\
             content-length: {}\r\n\r\n--b\r\ncontent-disposition: form-data; name=\"component\"\r\n\r\n",
            whole.len() + 1000
        );
        let half = [head.as_bytes(), &whole[..whole.len() / 2]].concat();
        tokio::io::AsyncWriteExt::write_all(&mut connection, &half).await.expect("written");
    }
    let plugin = admin.get(&path).await.ok(200);
    assert_eq!(plugin["versions"].as_array().expect("versions").len(), 1);

    // What is refused or removed is not kept compiled either.
    let liar = Chameleon::version("1.1.0").with("http", json!([]));
    upload(admin, &liar).await.fault("/component");
    assert_eq!(compiled(&world.setup), files);
    upload(admin, &Chameleon::version("1.1.0")).await.ok(201);
    assert_eq!(compiled(&world.setup).len(), files.len() + 1);
    admin.delete(&format!("{path}/versions/1.1.0")).await.ok(204);
    // The answer does not wait for the folder to be tidied.
    let kept = || async { (compiled(&world.setup) == files).then_some(()) };
    eventually("what was removed is not kept compiled", kept).await;
}

async fn only_platform_administrators_install(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let path = installed(&operator.owner, &Chameleon::version("1.0.0")).await;
    // Not by a role, and not by a policy of their own.
    let set = id(&tenant.owner.create("/api/v1/policies", json!({ "name": "all" })).await);
    let text = json!({ "text": "permit (principal, action, resource);" });
    let version = tenant.owner.create(&format!("/api/v1/policies/{set}/versions"), text).await;
    let body = json!({ "version": version["version"] });
    tenant.owner.post(&format!("/api/v1/policies/{set}/activate"), body).await.ok(200);
    let component = Chameleon::version("1.1.0");
    let colleague = operator.person("eve", "admin").await;
    for person in [&tenant.owner, &colleague] {
        upload(person, &component).await.problem(403, "denied");
        activate(person, &path, "1.0.0").await.problem(403, "denied");
        person.post(&format!("{path}/rollback"), json!({})).await.problem(403, "denied");
        person.post(&format!("{path}/versions/1.0.0/disable"), json!({})).await.problem(403, "denied");
        person.delete(&format!("{path}/versions/1.0.0")).await.problem(403, "denied");
        person.get(&path).await.ok(200);
    }
    upload(&world.client(), &component).await.problem(401, "unauthenticated");
    // A refused client may go on with the same connection, also after a long body.
    let long = vec![0; 3 << 20];
    for person in [&tenant.owner.client, &world.client()] {
        let refused = person.multipart(PLUGINS, &[("component", &long)], &[]).await;
        assert!([401, 403].contains(&refused.status), "{}", refused.text);
        assert_eq!(refused.header("connection"), "");
        person.get(PLUGINS).await;
    }
    world.client().get(PLUGINS).await.problem(401, "unauthenticated");
    let nothing = crate::harness::fresh_id();
    operator.owner.get(&format!("{PLUGINS}/{nothing}")).await.problem(404, "not_found");
    activate(&operator.owner, &format!("{PLUGINS}/{nothing}"), "1.0.0").await.problem(404, "not_found");
}

async fn what_was_acknowledged_survives_a_kill(backend: Backend) {
    let mut world = World::start(backend).await;
    let operator = world.operator().await;
    let admin = operator.owner.client.clone();
    let path = installed(&admin, &Chameleon::version("1.0.0")).await;
    let sink = sink(&admin, "s", None, json!({})).await;
    let mut last = 0;
    for round in 0..3 {
        // Uploads and activations, one after the other, until the server is gone in the middle of one.
        let (client, place) = (admin.clone(), path.clone());
        let (told, mut acknowledged) = tokio::sync::watch::channel(last);
        let working = tokio::spawn(async move {
            for patch in last + 1.. {
                let version = format!("1.0.{patch}");
                let component = Chameleon::version(&version).wasm();
                if !acknowledge(&client, &place, &version, &component).await {
                    return;
                }
                told.send(patch).ok();
            }
        });
        let until = last + 2 + round;
        crate::harness::within("some are acknowledged", acknowledged.wait_for(|n| *n >= until)).await.expect("alive");
        world.server.kill().await;
        working.await.expect("it ends");
        last = *acknowledged.borrow();
        world.again().await;
        let plugin = admin.get(&path).await.ok(200);
        let versions: Vec<&str> =
            plugin["versions"].as_array().expect("versions").iter().filter_map(|v| v["version"].as_str()).collect();
        for patch in 0..=last {
            assert!(versions.contains(&format!("1.0.{patch}").as_str()), "1.0.{patch} was acknowledged: {versions:?}");
        }
        // The one under way is there as a whole or not at all; what is active runs.
        let active = plugin["active_version"].as_str().expect("a version").to_owned();
        assert!([format!("1.0.{last}"), format!("1.0.{}", last + 1)].contains(&active), "{active} after {last}");
        assert_eq!(runs(&admin, &sink).await, format!("chameleon {active}"));
        last = versions.len() as u64 - 1;
        activate(&admin, &path, &format!("1.0.{last}")).await.ok(200);
    }
    let verified = admin.get("/api/v1/audit/verify").await.ok(200);
    assert!(verified.to_string().contains("true"), "{verified}");
}

/// Uploads and activates; whether both were acknowledged.
async fn acknowledge(client: &crate::harness::Client, path: &str, version: &str, component: &[u8]) -> bool {
    let form =
        [b"--b\r\ncontent-disposition: form-data; name=\"component\"\r\n\r\n".as_slice(), component, b"\r\n--b--\r\n"];
    let token = client.token.clone().expect("signed in");
    let uploading = client.http.post(format!("{}{PLUGINS}", client.base)).bearer_auth(&token).body(form.concat());
    let uploading = uploading.header("content-type", "multipart/form-data; boundary=b").send().await;
    if !uploading.is_ok_and(|answer| answer.status() == 201) {
        return false;
    }
    let body = json!({ "version": version, "accept_capabilities": true });
    let activating = client.http.post(format!("{}{path}/activate", client.base)).bearer_auth(&token).json(&body).send();
    activating.await.is_ok_and(|answer| answer.status() == 200)
}
