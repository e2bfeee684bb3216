use serde_json::json;
use url::Url;

use super::*;

fn grants(capabilities: &[Capability], config: Value) -> Result<Grants, Vec<ConfigFault>> {
    Grants::resolve(capabilities, &[], &config, &BTreeMap::new())
}

fn http(source: &str) -> Capability {
    Capability::Http(Template::http(source).unwrap())
}

fn target(url: &str) -> Target {
    Target::of_url(&Url::parse(url).unwrap()).unwrap()
}

#[test]
fn the_table_holds() {
    for (asked, config, allowed, denied) in [
        (vec![], json!({"url": "https://a.example"}), vec![], vec!["https://a.example/"]),
        (
            vec!["https://*.okta.com"],
            json!({}),
            vec!["https://x.okta.com/"],
            vec!["https://okta.com/", "https://x.okta.com.evil/"],
        ),
        (
            vec!["{config.url}"],
            json!({"url": "https://a.example:8443/path?q"}),
            vec!["https://a.example:8443/other"],
            vec!["https://a.example/", "http://a.example:8443/", "https://b.example:8443/"],
        ),
        (vec!["{config.url}"], json!({}), vec![], vec!["https://a.example/"]),
        (vec!["{config.url}"], json!({"url": null}), vec![], vec!["https://a.example/"]),
        (
            vec!["https://{config.domain}"],
            json!({"domain": "login.a.example"}),
            vec!["https://login.a.example/x"],
            vec!["https://a.example/"],
        ),
        (
            vec!["https://{config.tenant}.api.example"],
            json!({"tenant": "acme"}),
            vec!["https://acme.api.example/"],
            vec!["https://evil.api.example/"],
        ),
        (
            vec!["http://{config.host}:{config.port}"],
            json!({"host": "10.0.0.1", "port": 99}),
            vec!["http://10.0.0.1:99/"],
            vec!["http://10.0.0.1/"],
        ),
        (vec!["http://{config.host}:99"], json!({"host": "[::1]"}), vec!["http://[::1]:99/"], vec!["http://[::2]:99/"]),
    ] {
        let capabilities: Vec<_> = asked.iter().map(|source| http(source)).collect();
        let grants = grants(&capabilities, config.clone()).unwrap();
        for url in allowed {
            assert_eq!(grants.http(&target(url)), Ok(()), "{asked:?} with {config} allows {url}");
        }
        for url in denied {
            assert!(grants.http(&target(url)).is_err(), "{asked:?} with {config} denies {url}");
        }
    }
}

#[test]
fn configuration_cannot_widen_a_capability() {
    for value in ["*", "*.com", "a/b", "x@y", "a:1", "a b", "", "a#b", "evil.com/.api", "a%2eb", "{config.y}"] {
        let config = json!({"x": value});
        for source in ["https://{config.x}", "https://{config.x}.api.example", "https://a.example:{config.x}"] {
            let result = grants(&[http(source)], config.clone());
            let open = result.is_ok_and(|grants| !grants.http.is_empty());
            assert!(!open, "{source} with {value:?} must grant nothing");
        }
    }
    for value in
        ["ftp://a", "a.example", "https://u:p@a.example", "https://*", "https://*.com", "file:///etc", "javascript:1"]
    {
        let result = grants(&[http("{config.x}")], json!({"x": value}));
        let everything = result.is_ok_and(|grants| grants.http(&target("https://b.com/")).is_ok());
        assert!(!everything, "{value:?}");
    }
    let faults = grants(&[http("{config.x}")], json!({"x": "a.example"})).unwrap_err();
    assert_eq!(faults[0].property, "x");
}

#[test]
fn what_is_no_template_is_refused_at_install() {
    for source in [
        "",
        "a.example",
        "{config}",
        "{config.a.b}",
        "{secret.x}",
        "https://{config.x",
        "https://a b",
        "ftp://a",
        "https://a/path",
    ] {
        assert!(Template::http(source).is_err(), "{source:?}");
    }
    for source in ["a.example", "{config.host}", "a:0", "https://a:1"] {
        assert!(Template::tcp(source).is_err(), "{source:?}");
    }
    assert!(Template::tcp("{config.host}:6514").is_ok());
}

#[test]
fn a_denial_teaches() {
    let denial = grants(&[http("{config.url}")], json!({"url": "https://a.example"}))
        .unwrap()
        .http(&target("https://b.example/"))
        .unwrap_err();
    for part in ["https://b.example", "https://a.example", "{config.url}"] {
        assert!(denial.contains(part), "{denial}");
    }
    let denial = grants(&[http("{config.url}")], json!({})).unwrap().http(&target("https://b.example/")).unwrap_err();
    assert!(denial.contains("`{config.url}` is not set"), "{denial}");
}

#[test]
fn folders_and_secrets_are_granted_by_name_only() {
    let offered = BTreeMap::from([("audit".to_owned(), PathBuf::from("/x"))]);
    let asked = [
        Capability::Directory("audit".into()),
        Capability::Directory("home".into()),
        Capability::RevealSecret("key".into()),
    ];
    let slots = [SecretSlot {
        name: "token".into(),
        description: String::new(),
        hosts: vec![Template::http("{config.url}").unwrap()],
    }];
    let grants = Grants::resolve(&asked, &slots, &json!({"url": "https://a.example"}), &offered).unwrap();
    assert_eq!(grants.directories(), [("audit".to_owned(), PathBuf::from("/x"))]);
    assert!(grants.withheld()[0].contains("home"));
    assert!(grants.reveals("key") && !grants.reveals("token"));
    assert!(grants.secret_hosts("token").unwrap()[0].covers(&target("https://a.example/")));
    assert!(grants.secret_hosts("key").is_none());
}
