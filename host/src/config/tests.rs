use super::*;

fn load(environment: &[(&str, &str)]) -> Result<Config, String> {
    let environment = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let base = [("KAIZEN_DATA_DIR".to_owned(), "/tmp/kaizen-config-test".to_owned())];
    Config::load(None, base.into_iter().chain(environment), []).map_err(|error| error.to_string())
}

#[test]
fn defaults_hold() {
    let config = load(&[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.ops_listen.to_string(), "127.0.0.1:9090");
    assert_eq!(config.database_url, "sqlite:/tmp/kaizen-config-test/kaizen.db");
    assert_eq!(config.public_url.as_str(), "http://127.0.0.1:8080/");
    assert!(config.egress_allow_private.is_empty() && config.cors_origins.is_empty() && !config.is_set("listen"));
    assert!(config.audit_dir_organizations.is_empty());
    // Whoever checks a connection hears why it took too long before the request itself does.
    let limits = &config.limits;
    assert!(limits.plugin_queue_seconds + limits.plugin_check_seconds < limits.request_seconds);
}

#[test]
fn organizations_that_may_use_the_audit_folder_are_ids() {
    let (first, second) = ("019a0000-0000-7000-8000-000000000001", "019a0000-0000-7000-8000-000000000002");
    let named = load(&[("KAIZEN_AUDIT_DIR_ORGANIZATIONS", &format!(" {second},{first}, {first}"))]).unwrap();
    let named: Vec<String> = named.audit_dir_organizations.iter().map(ToString::to_string).collect();
    assert_eq!(named, [first, second]);
    for wrong in ["acme", "019a0000-0000-7000-8000-000000000001;acme", "*"] {
        let error = load(&[("KAIZEN_AUDIT_DIR_ORGANIZATIONS", wrong)]).unwrap_err();
        assert!(error.contains(&format!("`{wrong}` is not the id of an organization")), "{error}");
    }
}

#[test]
fn this_machine_may_be_called_localhost() {
    assert_eq!(load(&[("KAIZEN_LISTEN", "localhost:81")]).unwrap().listen.to_string(), "127.0.0.1:81");
}

#[test]
fn an_unknown_setting_names_the_nearest() {
    let error = load(&[("KAIZEN_LISTN", "127.0.0.1:1")]).unwrap_err();
    assert_eq!(error, "KAIZEN_LISTN: unknown setting `listn`; did you mean `listen`?");
    assert!(!load(&[("KAIZEN_QQQQQQQQQQ", "1")]).unwrap_err().contains("did you mean"));
}

#[test]
fn a_bad_value_names_the_setting_and_its_shape() {
    for (key, value, expected) in [
        ("KAIZEN_LISTEN", "8080", "an IP address and a port"),
        ("KAIZEN_LISTEN", "studio.example.com:8080", "an IP address and a port"),
        ("KAIZEN_DATABASE_URL", "mysql://x", "sqlite:PATH or postgres://"),
        ("KAIZEN_REDIS_URL", "localhost", "redis://HOST:PORT"),
        ("KAIZEN_PUBLIC_URL", "studio.example.com", "https://studio.example.com"),
        ("KAIZEN_EGRESS_ALLOW_PRIVATE", "10.0.0.0/8,nowhere", "`nowhere` is not a network"),
        ("KAIZEN_CORS_ORIGINS", "https://app.example.com/", "is not an origin"),
        ("KAIZEN_MASTER_KEY", "abc", "64 hexadecimal digits"),
        ("KAIZEN_DATABASE_CONNECTIONS", "0", "from 2 to 1000"),
        ("KAIZEN_LOG_FORMAT", "xml", "text or json"),
        ("KAIZEN_PLUGINS_TRUSTED_KEYS", "ed25519:00", "64 hexadecimal digits"),
        ("KAIZEN_PLUGINS_MAX_BYTES", "1", "from 1024"),
    ] {
        let error = load(&[(key, value)]).unwrap_err();
        assert!(error.starts_with(key) && error.contains(expected), "{error}");
    }
}

#[test]
fn passwords_are_not_shown() {
    let error = load(&[("KAIZEN_DATABASE_URL", "mysql://root:hunter2@db/x")]).unwrap_err();
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn flags_go_before_the_environment_and_the_environment_before_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kaizen.toml");
    let text = "listen = \"127.0.0.1:1\"\nops_listen = \"127.0.0.1:1\"\ncors_origins = [\"https://a.example\", \"https://b.example\"]\n";
    std::fs::write(&file, format!("{text}data_dir = \"/tmp/x\"\n")).unwrap();
    let environment = [("KAIZEN_LISTEN", "127.0.0.1:2"), ("KAIZEN_OPS_LISTEN", "127.0.0.1:2")];
    let environment = environment.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let flags = [("listen".to_owned(), "127.0.0.1:3".to_owned())];
    let config = Config::load(Some(&file), environment, flags).unwrap();
    assert_eq!((config.listen.port(), config.ops_listen.port()), (3, 2));
    assert_eq!(config.cors_origins, ["https://a.example", "https://b.example"]);
}

#[test]
fn a_table_of_the_file_is_the_beginning_of_names() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kaizen.toml");
    let key = format!("ed25519:{}", "ab".repeat(32));
    std::fs::write(
        &file,
        format!("data_dir = \"/tmp/x\"\n[plugins]\ndir = \"/srv/plugins\"\ntrusted_keys = [\"{key}\"]\n"),
    )
    .unwrap();
    let config = Config::load(Some(&file), [], []).unwrap();
    assert_eq!(config.plugins_dir.as_deref(), Some(Path::new("/srv/plugins")));
    assert_eq!(config.plugins_trusted_keys.iter().map(ToString::to_string).collect::<Vec<_>>(), [key]);
    std::fs::write(&file, "[plugins]\nfolder = \"x\"\n[plugins.more]\n").unwrap();
    assert!(Config::load(Some(&file), [], []).unwrap_err().to_string().contains("unknown setting `plugins_folder`"));
    std::fs::write(&file, "[plugins.more]\na = 1\n").unwrap();
    assert!(Config::load(Some(&file), [], []).unwrap_err().to_string().contains("`plugins_more`: expected a string"));
}

#[test]
fn a_file_that_is_named_must_be_there_and_hold_up() {
    let missing = Config::load(Some(Path::new("/nonexistent/kaizen.toml")), [], []).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/kaizen.toml: "), "{missing}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kaizen.toml");
    std::fs::write(&file, "database-url = \"sqlite:x\"\n").unwrap();
    let error = Config::load(Some(&file), [], []).unwrap_err().to_string();
    assert!(error.ends_with("unknown setting `database-url`; did you mean `database_url`?"), "{error}");
}

#[test]
fn plugins_may_take_what_is_set_and_nonsense_is_one_clear_line() {
    use std::time::Duration;
    let bounds = load(&[]).unwrap().plugin_bounds;
    let default = Bounds::default();
    assert_eq!(format!("{bounds:?}"), format!("{default:?}"), "the settings' defaults are the code's");
    let set = [
        ("KAIZEN_PLUGIN_MEMORY_MIB", "64"),
        ("KAIZEN_PLUGIN_STACK_KIB", "512"),
        ("KAIZEN_PLUGIN_CPU_MS", "250"),
        ("KAIZEN_PLUGIN_CALL_SECONDS", "3"),
        ("KAIZEN_PLUGIN_HTTP_IN_KIB", "10"),
        ("KAIZEN_PLUGIN_HTTP_SECONDS", "2"),
        ("KAIZEN_PLUGIN_RESULT_KIB", "100"),
        ("KAIZEN_PLUGIN_CALLS", "4"),
        ("KAIZEN_PLUGIN_LOG_LINES_PER_SECOND", "7"),
    ];
    let bounds = load(&set).unwrap().plugin_bounds;
    assert_eq!((bounds.call.memory_bytes, bounds.stack_bytes), (64 << 20, 512 << 10));
    assert_eq!((bounds.call.cpu, bounds.call.wall), (Duration::from_millis(250), Duration::from_secs(3)));
    assert_eq!((bounds.call.http_in_bytes, bounds.call.transfer_bytes), (10 << 10, 100 << 10));
    assert_eq!(bounds.call.http_exchange, Duration::from_secs(2));
    assert_eq!((bounds.calls, bounds.calls_per_plugin, bounds.calls_per_connection), (4, 4, 4), "defaults give way");
    assert_eq!(bounds.log_lines_per_second, 7);

    for (name, value, expected) in [
        ("PLUGIN_MEMORY_MIB", "0", "from 2 to 4096"),
        ("PLUGIN_MEMORY_MIB", "lots", "from 2 to 4096"),
        ("PLUGIN_CPU_MS", "-1", "from 10 to 600000"),
        ("PLUGIN_CALLS", "100000", "from 1 to 1000"),
        ("PLUGIN_RESULT_KIB", "1.5", "from 64 to 1048576"),
        ("PLUGIN_CALLS_PER_CONNECTION", "33", "`plugin_calls_per_plugin` allows 32"),
        ("PLUGIN_TRIP_FAILURES", "0", "from 1 to 1000"),
        ("PLUGIN_MEMORY_MIB", "513", "`plugin_memory_per_organization_mib` allows 512"),
        ("PLUGIN_MEMORY_PER_ORGANIZATION_MIB", "2049", "`plugin_memory_total_mib` allows 2048"),
    ] {
        let name = format!("KAIZEN_{name}");
        let error = load(&[(&name, value)]).unwrap_err();
        assert!(error.contains(&name) && error.contains(expected) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn an_answer_is_waited_for_longer_than_a_statement_may_take() {
    let times = |set: &[(&str, &str)]| {
        load(set).map(|config| (config.limits.database_statement_seconds, config.limits.database_answer_seconds))
    };
    let (statement, answer) = ("KAIZEN_DATABASE_STATEMENT_SECONDS", "KAIZEN_DATABASE_ANSWER_SECONDS");
    assert_eq!(times(&[]), Ok((25, 27)));
    assert_eq!(times(&[(statement, "60")]), Ok((60, 62)), "the one that was not set gives way");
    assert_eq!(times(&[(answer, "5")]), Ok((4, 5)));
    assert_eq!(times(&[(statement, "5"), (answer, "6")]), Ok((5, 6)));
    for set in [&[(statement, "5"), (answer, "5")][..], &[(answer, "1")]] {
        let error = times(set).unwrap_err();
        assert!(error.contains(answer) && error.contains("it must be more"), "{error}");
    }
}

#[test]
fn proxies_have_to_be_named_before_they_are_believed() {
    use super::proxies::ForwardedBy;
    let config = load(&[("KAIZEN_TRUSTED_PROXIES", "10.0.0.0/8, 127.0.0.1")]).unwrap();
    let trusts = |address: &str| config.proxies.trust(address.parse().unwrap());
    assert!(trusts("10.1.2.3") && trusts("127.0.0.1") && trusts("::ffff:10.1.2.3"));
    assert!(!trusts("127.0.0.2") && !trusts("::1"));
    assert_eq!(config.proxies.header, ForwardedBy::XForwardedFor);
    let set = [("KAIZEN_TRUSTED_PROXIES", "10.0.0.0/8"), ("KAIZEN_CLIENT_ADDRESS", "proxy-protocol")];
    assert_eq!(load(&set).unwrap().proxies.header, ForwardedBy::ProxyProtocol);
    for (set, expected) in [
        (vec![("KAIZEN_TRUSTED_PROXIES", "somewhere")], "`somewhere` is not a network"),
        (vec![("KAIZEN_CLIENT_ADDRESS", "forwarded")], "name them in `trusted_proxies`"),
        (
            vec![("KAIZEN_TRUSTED_PROXIES", "10.0.0.1"), ("KAIZEN_CLIENT_ADDRESS", "x-real-ip")],
            "expected x-forwarded-for",
        ),
    ] {
        let error = load(&set).unwrap_err();
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn draining_waits_where_a_load_balancer_may_be() {
    let drain = |set: &[(&str, &str)]| load(set).map(|config| config.drain.as_secs());
    assert_eq!(drain(&[]), Ok(0), "on loopback");
    assert_eq!(drain(&[("KAIZEN_LISTEN", "0.0.0.0:8080")]), Ok(10));
    assert_eq!(drain(&[("KAIZEN_DRAIN_SECONDS", "3")]), Ok(3));
    assert!(drain(&[("KAIZEN_DRAIN_SECONDS", "601")]).unwrap_err().contains("0 to 600"));
}
