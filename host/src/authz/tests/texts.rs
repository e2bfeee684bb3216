//! What tenants write: accepted, refused with line and column, and what it then does.

use super::*;

fn check(text: &str) -> Result<Validated, Vec<PolicyFault>> {
    World::new().validate(text)
}

fn refused(text: &str) -> String {
    let faults = check(text).expect_err(text);
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_examples_hold_up_without_warnings() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let validated = check(&text).unwrap_or_else(|faults| panic!("{}: {faults:?}", path.display()));
        assert_eq!(validated.warnings, [], "{}", path.display());
        assert!(validated.policies > 0);
        count += 1;
    }
    assert!(count >= 3);
}

#[test]
fn what_a_tenant_would_naturally_write_works() {
    let world = World::new();
    let production = r#"forbid (principal, action == Kaizen::Action::"agent.deploy", resource) when { context.environment == "production" && !(principal in Kaizen::Role::"admin") };"#;
    let to = |environment: &str| Context { gateway: Some(gateway(environment)), ..Context::default() };
    let developer = person(&[(Role::Developer, None)]);
    assert!(world.decide(production, &developer, Action::AgentDeploy, &agent(), &to("staging")).allowed);
    assert!(!world.decide(production, &developer, Action::AgentDeploy, &agent(), &to("production")).allowed);
    let admin = person(&[(Role::Admin, None)]);
    assert!(world.decide(production, &admin, Action::AgentDeploy, &agent(), &to("production")).allowed);
    let workspace_admin = person(&[(Role::Admin, Some(10))]);
    assert!(world.decide(production, &workspace_admin, Action::AgentDeploy, &agent(), &to("production")).allowed);
    // What the route says of the environment wins over the gateway's.
    let said = Context { environment: Some("production".into()), ..to("staging") };
    assert!(!world.decide(production, &developer, Action::AgentDeploy, &agent(), &said).allowed);

    let nobody = person(&[]);
    let with = |attributes| with_attributes(person(&[]), attributes);
    let cases = [
        (
            r#"principal.attributes.department == "legal""#,
            json!({"department": "legal"}),
            json!({"department": "sales"}),
        ),
        ("principal.attributes.clearance >= 3", json!({"clearance": 3}), json!({"clearance": 2})),
        ("principal.attributes.clearance >= 3", json!({"clearance": 4.0}), json!({"clearance": 3.5})),
        ("principal.attributes.clearance + 1 == 4", json!({"clearance": 3}), json!({"clearance": 4})),
        (r#"principal.attributes.regions.contains("eu")"#, json!({"regions": ["us", "eu"]}), json!({"regions": []})),
        (
            r#"principal.attributes.regions.containsAny(["eu", "ch"])"#,
            json!({"regions": ["ch"]}),
            json!({"regions": ["us"]}),
        ),
        (
            r#"["legal", "sales"].contains(principal.attributes.department)"#,
            json!({"department": "sales"}),
            json!({"department": "it"}),
        ),
        (
            r#"principal.attributes.department like "le*""#,
            json!({"department": "legal"}),
            json!({"department": "sales"}),
        ),
        ("!principal.attributes.contractor", json!({"contractor": false}), json!({"contractor": true})),
        ("principal.attributes.contractor == false", json!({"contractor": false}), json!({"contractor": true})),
        (r#"principal.attributes["cost centre"] == "7""#, json!({"cost centre": "7"}), json!({"cost centre": "8"})),
        ("principal.attributes.team == resource.labels.team", json!({"team": "support"}), json!({"team": "sales"})),
        ("principal has attributes.vip && principal.attributes.vip", json!({"vip": true}), json!({"vip": false})),
        (r#"resource.labels.team == "support" && principal.email like "ada@*""#, json!({}), json!(null)),
        (r#"resource.hasTag("team") && resource.getTag("team") == "support""#, json!({}), json!(null)),
        (r#"resource.workspace == Kaizen::Workspace::"01900000-0000-7000-8000-00000000000a""#, json!({}), json!(null)),
        (r#"resource in Kaizen::Workspace::"01900000-0000-7000-8000-00000000000a""#, json!({}), json!(null)),
        (
            r#"context.weekday == "friday" && context.hour >= 10 && context.now > datetime("2026-11-20T10:00:00Z")"#,
            json!({}),
            json!(null),
        ),
    ];
    for (condition, yes, no) in cases {
        let text =
            format!(r#"permit (principal, action == Kaizen::Action::"agent.read", resource) when {{ {condition} }};"#);
        assert!(world.allows(&text, &with(yes), Action::AgentRead, &agent()), "{condition}");
        if !no.is_null() {
            assert!(!world.allows(&text, &with(no), Action::AgentRead, &agent()), "{condition}");
        }
    }
    let own = r#"permit (principal, action in Kaizen::Action::"agent.*", resource is Kaizen::Agent) when { resource.owner == principal };"#;
    let mine = Resource { owner: Some(nobody.user_id), ..agent() };
    assert!(world.allows(own, &nobody, Action::AgentUpdate, &mine));
    assert!(!world.allows(own, &nobody, Action::AgentUpdate, &agent()));
    let granted = r#"permit (principal, action == Kaizen::Action::"agent.deploy", resource)
        when { principal.grants.contains({role: Kaizen::Role::"viewer", workspace: resource.workspace}) };"#;
    assert!(world.allows(granted, &person(&[(Role::Viewer, Some(10))]), Action::AgentDeploy, &agent()));
    assert!(!world.allows(granted, &person(&[(Role::Viewer, Some(11))]), Action::AgentDeploy, &agent()));
}

#[test]
fn faults_name_line_and_column() {
    insta::assert_snapshot!(refused("permit (principal, action, resource)\nwhen { true }"), @r#"line 2, column 14: unexpected end of input"#);
    insta::assert_snapshot!(refused("permit (principal, action, resource);\n\npermit (principal, action == Kaizen::Action::\"agent.deplyo\", resource);"), @r#"line 3, column 30: unrecognized action `Kaizen::Action::"agent.deplyo"`; did you mean `Kaizen::Action::"agent.deploy"`?"#);
    insta::assert_snapshot!(refused("permit (principal, action == Kaizen::Action::\"agent.read\", resource)\n  when { resource.nmae == \"x\" };"), @r#"line 2, column 10: attribute `nmae` on entity type `Kaizen::Agent` not found; did you mean `name`?"#);
    insta::assert_snapshot!(refused("permit (principal in Kaizen::Role::\"boss\", action, resource);"), @r#"line 1, column 22: entity `Kaizen::Role::"boss"` is of an enumerated entity type, but `"boss"` is not declared as a valid eid; valid entity eids: "owner", "admin", "developer", "viewer", "auditor""#);
    insta::assert_snapshot!(refused("permit (principal, action, resource) when { principal.attributes.a == 1 && principal.attributes.a == \"x\" };"), @r#"line 1, column 76: the types Long and String are not compatible; both operands to a `==` expression must have compatible types. Types must be exactly equal to be compatible"#);
    insta::assert_snapshot!(refused("permit (principal == ?principal, action, resource);"), @r#"line 1, column 22: templates (`?principal`, `?resource`) are not accepted; write the policy out"#);
    insta::assert_snapshot!(refused("@id(\"a\") permit (principal, action, resource);\n@id(\"a\") forbid (principal, action, resource);"), @r#"line 2, column 1: another policy is called `a` already; each `@id` is used once"#);
    insta::assert_snapshot!(refused("permit (principal, action == Kaizen::Action::\"user.read\", resource) when { resource.email like \"*\" };"), @r#"line 1, column 76: in policy 1: `resource.email` is not visible: of another person only `organization` and `name` are"#);
    insta::assert_snapshot!(refused("permit (principal, action == Kaizen::Action::\"agent.read\", resource)\nwhen { resource.owner.email == \"a\" };"), @r#"line 2, column 8: this looks further than one step: of what `principal`, `resource` or `context` refer to, only `context.gateway` can be looked into (compare it instead: `resource.owner == principal`)"#);
}

#[test]
fn what_several_types_lack_is_told_once() {
    let told = refused(
        "permit (principal, action in Kaizen::Action::\"*.read\", resource)\nwhen { resource.workspace == resource.workspace };",
    );
    let lines: Vec<_> = told.lines().collect();
    // Two places, each with the types that lack it and the one that may.
    assert_eq!(lines.len(), 4, "{told}");
    assert!(
        lines[0]
            .starts_with("line 2, column 8: attribute `workspace` not found on `Kaizen::AuditSink`, `Kaizen::Gateway`"),
        "{told}"
    );
}

#[test]
fn an_unguarded_attribute_is_accepted_with_a_warning() {
    let validated =
        check("permit (principal, action, resource)\nwhen { principal.attributes.clearance >= 3 };").unwrap();
    let warnings: Vec<_> = validated.warnings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(warnings.join("\n"), @"line 2, column 8: `attributes.clearance` of a `Kaizen::User` may be absent, and a request is then denied with the reason `error`; guard it: `… has attributes.clearance && …`");
    let guarded = "permit (principal, action, resource) when { principal.attributes has clearance && principal.attributes.clearance >= 3 };";
    assert_eq!(check(guarded).unwrap().warnings, []);
}

#[test]
fn a_text_over_the_limits_is_refused() {
    let long = format!("// {}\npermit (principal, action, resource);", "x".repeat(256 * 1024));
    assert!(refused(&long).contains("at most 262144"));
    let many = "forbid(principal,action,resource);".repeat(2001);
    assert!(refused(&many).contains("at most 2000"));
    assert!(check("").unwrap().policies == 0);
}

#[test]
fn a_deeply_nested_text_ends_in_a_fault_and_not_in_a_crash() {
    let with = |condition: String| format!("permit (principal, action, resource) when {{ {condition} }};");
    let nested = |open: &str, close: &str, n: usize| with(open.repeat(n) + "true" + &close.repeat(n));
    for n in [150, 1_000, 30_000] {
        for (open, close) in
            [("(", ")"), ("!(", ")"), ("[", "]"), ("{a: ", "}"), ("if true then ", " else false"), ("principal.", "")]
        {
            drop(check(&nested(open, close, n)));
        }
        for chained in [" && true", " || true", " + 1", ".a", " == 1", " has a", " in resource"] {
            drop(check(&with("true".to_owned() + &chained.repeat(n))));
        }
    }
    assert!(refused(&with("true".to_owned() + &" && true".repeat(300))).contains("nests deeper than 200"));
    assert!(refused(&nested("(", ")", 300)).contains("at most"));
    // Brackets in strings and comments do not count.
    let quoted = format!(
        "// {0}\npermit (principal, action, resource) when {{ principal.name == \"\\\"{0}\" }};",
        "(".repeat(2000)
    );
    assert_eq!(check(&quoted).map(|validated| validated.policies), Ok(1));
}

#[test]
fn what_is_accepted_can_be_evaluated_on_a_small_stack() {
    let conjuncts = vec!["principal.attributes has level"; 190].join(" && ");
    let text =
        format!(r#"permit (principal, action == Kaizen::Action::"agent.read", resource) when {{ {conjuncts} }};"#);
    let small = std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(move || {
        let world = World::new();
        let who = with_attributes(person(&[]), json!({"level": 1}));
        world.decide(&text, &who, Action::AgentRead, &agent(), &Context::default()).reason
    });
    assert_eq!(small.unwrap().join().unwrap(), Reason::Allowed);
}

#[test]
fn an_unguarded_attribute_hides_no_other_fault() {
    let with = |condition: &str| {
        format!("forbid (principal, action == Kaizen::Action::\"agent.deploy\", resource)\nwhen {{ {condition} }};")
    };
    for condition in [
        r#"principal.attributes.level >= 2 && (principal.attributes has vip || resource.nmae == "x")"#,
        r#"principal.attributes.level >= 2 && (principal.attributes has level || resource.nmae == "x")"#,
        r#"principal.attributes.level >= 2 && (if principal.attributes has vip then true else resource.nmae == "x")"#,
        r#"principal.attributes.level >= 2 && (principal has attributes.vip || resource.nmae == "x")"#,
        r#"resource.labels.team == "x" && (resource has labels.team || resource.nmae == "x")"#,
        r#"(resource has labels.team || resource.nmae == "x") && resource.labels.team == "x""#,
        r#"principal.attributes.level >= 2 && resource.nmae == "x""#,
    ] {
        let told = refused(&with(condition));
        assert!(told.starts_with("line 2, column") && told.contains("attribute `nmae`"), "{condition}: {told}");
        assert_eq!(told.lines().count(), 1, "{condition}: {told}");
    }
    let told =
        refused(&with(r#"principal.attributes.level >= 2 && (principal.attributes has vip || principal.name == 1)"#));
    assert!(told.contains("not compatible"), "{told}");
    let told = refused(
        "forbid (principal, action == Kaizen::Action::\"user.update\", resource)\nwhen { principal.attributes.level >= 2 && context.role == Kaizen::Role::\"owner\" };",
    );
    assert!(told.contains("`role`"), "what is optional and not the tenant's own has to be guarded: {told}");
    // What is guarded or of one type is not refused for the sake of an unguarded attribute before it.
    for condition in [
        r#"principal.attributes.level >= 2 && resource.hasTag("team") && resource.getTag("team") == "x""#,
        r#"principal.attributes.level >= 2 && principal.attributes has vip && principal.attributes.vip"#,
        r#"resource.labels.team == "x" && principal has attributes.level && principal.attributes.level > 1"#,
    ] {
        let warnings = check(&with(condition)).unwrap_or_else(|faults| panic!("{condition}: {faults:?}")).warnings;
        assert!(!warnings.is_empty() && warnings.iter().all(|w| w.message.contains("may be absent")), "{warnings:?}");
    }
    let several = "forbid (principal, action in Kaizen::Action::\"*.read\", resource)\nwhen { principal.attributes.level >= 2 && resource is Kaizen::Agent && resource.labels.team == \"x\" };";
    let warnings = check(several).unwrap().warnings;
    assert!(warnings.iter().all(|w| w.message.contains("may be absent")), "{warnings:?}");
}

#[test]
fn faults_are_where_they_are_and_not_in_a_comment_or_another_policy() {
    let before = "// ?principal resource.email \"Production\"\npermit (principal, action, resource) when { principal.email == \"resource.email\" };\n";
    let place = |policy: &str| {
        let fault = check(&format!("{before}{policy}")).expect_err(policy).remove(0);
        (fault.line, fault.column)
    };
    assert_eq!(place("permit (principal == ?principal, action, resource);"), (3, 22));
    assert_eq!(
        place(
            "permit (principal, action == Kaizen::Action::\"user.read\", resource)\nwhen { resource.email like \"*\" };"
        ),
        (4, 8)
    );
    assert_eq!(
        place(
            "permit (principal, action == Kaizen::Action::\"user.read\", resource)\nwhen { resource[\"email\"] like \"*\" };"
        ),
        (4, 8)
    );
    assert_eq!(
        place(&format!("  permit (principal, action, resource) when {{ true{} }};", " && true".repeat(300))),
        (3, 3)
    );
    assert_eq!(
        place(
            "forbid (principal, action == Kaizen::Action::\"agent.deploy\", resource)\nwhen { context.environment == \"Production\" };"
        ),
        (4, 31)
    );
    assert_eq!(
        place(
            "@id(\"a\") permit (principal, action, resource); // @id(\"a\")\n  @description(\"x\") @id(\"a\") forbid (principal, action, resource); // @id(\"a\")"
        ),
        (4, 21)
    );
    // Cedar ends a comment at a carriage return, and so does the bound on nesting.
    let nested =
        format!("// x\rpermit (principal, action, resource) when {{ {}true{} }};", "(".repeat(5000), ")".repeat(5000));
    assert!(refused(&nested).contains("nested"));
}

#[test]
fn a_set_that_was_stored_before_environments_had_one_spelling_still_forbids() {
    let world = World::new();
    let owner = person(&[(Role::Owner, None)]);
    let to = |environment: &str| Context { gateway: Some(gateway(environment)), ..Context::default() };
    for condition in [
        r#"context.environment == "Production""#,
        r#"!(" PRODUCTION" != context.environment)"#,
        r#"["Staging", "Production"].contains(context.environment) && context.environment != "Staging""#,
        r#"["Production"].containsAny([context.environment])"#,
        r#"context.gateway.environment like "Prod*""#,
        r#"context.environment == (if context.hour < 24 then "Production" else "x")"#,
    ] {
        let text =
            format!("forbid (principal, action == Kaizen::Action::\"agent.deploy\", resource) when {{ {condition} }};");
        assert!(world.validate(&text).is_err(), "{condition}: what is written now says it as it is compared");
        let index = text::deep(|| tenant::compile(&world.engine.vocabulary, &text)).unwrap().unwrap();
        for (environment, allowed) in [("production", false), ("staging", true)] {
            let on = to(environment);
            let tenant = Tenant::Policies(&index);
            let decision = world.engine.decide(tenant, &owner, Action::AgentDeploy, &agent(), &on, now());
            assert_eq!(decision.allowed, allowed, "{condition}, {environment}: {}", decision.sentence());
        }
    }
}

#[test]
fn an_answer_names_so_many_policies_and_no_more() {
    let world = World::new();
    let one = format!("@description(\"{}\") forbid (principal, action, resource);\n", "d\u{e9}".repeat(500));
    let decision = world.decide(
        &one.repeat(15),
        &person(&[(Role::Owner, None)]),
        Action::AgentRead,
        &agent(),
        &Context::default(),
    );
    let told = decision.to_json();
    assert_eq!(told["policies"].as_array().unwrap().len(), 10);
    assert!(
        told["policies"].as_array().unwrap().iter().all(|policy| policy["description"]
            .as_str()
            .unwrap()
            .chars()
            .count()
            == 500)
    );
    let message = told["message"].as_str().unwrap();
    assert!(message.ends_with("; and by 5 more.") && message.chars().count() < 6_000, "{message}");
}

/// As in the field: a text that Cedar accepts, and looks at for a long time.
fn costly(ifs: usize, elements: usize) -> String {
    let set = vec!["1"; elements].join(",");
    let (before, after) = ("if true then ".repeat(ifs), " else false".repeat(ifs));
    format!("permit (principal, action, resource) when {{ {before}[{set}].contains(1){after} }};")
}

#[test]
fn what_takes_long_to_check_is_refused_before_it_is_checked() {
    for (ifs, elements) in [(10, 20_000), (10, 60_000), (10, 110_000), (0, 110_000)] {
        assert!(refused(&costly(ifs, elements)).contains("at most 2000 elements"), "{ifs} {elements}");
    }
    assert!(refused(&costly(10, 1_900)).contains("checks"));
    assert!(refused(&costly(150, 1)).contains("checks"));
    assert_eq!(check(&costly(2, 1_900)).map(|validated| validated.policies), Ok(1));
    // Many policies that are cheap by themselves.
    let one = costly(5, 100);
    assert!(refused(&one.repeat(50)).contains("checks"));
    assert!(check(&one.repeat(2)).is_ok());
    // A scope that can match nobody is checked all the same.
    let nobody = one.replace("(principal,", "(principal == Kaizen::User::\"x\",");
    assert!(refused(&nobody.repeat(50)).contains("checks"));
    // An action that is named is one kind of request.
    let named = costly(5, 100).replace("action,", "action == Kaizen::Action::\"agent.read\",");
    assert!(check(&named.repeat(50)).is_ok());
    assert!(
        refused(&format!("permit (principal, action, resource) when {{ principal.{} }};", "a".repeat(3000)))
            .contains("2048")
    );
}

/// The smallest number, up to `most`, from which on something holds.
fn least(most: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut from, mut to) = (0, most);
    while from < to {
        let middle = from.midpoint(to);
        if holds(middle) {
            to = middle;
        } else {
            from = middle + 1;
        }
    }
    from
}

/// The work is counted, and not the time, which is another one on each machine.
#[test]
fn what_is_just_above_the_bound_of_checks_is_refused() {
    let world = World::new();
    let affordable = |text: &str, checks: u64| {
        let bounds = Bounds { checks, ..Bounds::of(&ServerLimits::default()) };
        // Nobody waits for the answer: what can be afforded is not checked.
        let read = text::deep(|| super::super::validate(&world.engine, text, &bounds, &|| true)).unwrap();
        let refused = |faults: Vec<PolicyFault>| {
            assert!(
                faults.len() == 1 && faults[0].message.contains(&format!("more than {checks} checks")),
                "{faults:?}"
            );
        };
        read.map_err(refused).is_ok()
    };
    let work = |text: &str| least(1 << 24, |checks| affordable(text, checks));
    let requests = u64::try_from(world.engine.vocabulary.pairs().count()).unwrap();
    // Each number is looked at, and its type copied with the list; the rest is the list, `contains(1)`, and the policy.
    assert_eq!(work(&costly(0, 100)), (2 * 100 + 1 + 3) * requests);
    for (ifs, elements) in [(0, 1_900), (1, 500), (5, 100), (8, 10)] {
        let (one, doubled) = (work(&costly(ifs, elements)), work(&costly(ifs + 1, elements)));
        assert!(doubled >= 2 * one && doubled < 2 * one + 4 * requests, "{ifs}, {elements}: {one}, {doubled}");
    }
    let default = ServerLimits::default().policy_checks;
    for ifs in [4, 6, 9] {
        let with = |elements: u64| costly(ifs, usize::try_from(elements).unwrap());
        let refused = least(2_000, |elements| !affordable(&with(elements), default));
        let (above, below) = (work(&with(refused)), work(&with(refused - 1)));
        assert!(below <= default && default < above, "{ifs}: {below}, {above}");
    }
}

#[test]
fn policies_on_jobs_see_the_deployment_that_they_are_of() {
    let world = World::new();
    for action in [Action::JobRead, Action::JobRetry, Action::JobCancel] {
        let text = format!(
            "forbid (principal, action == Kaizen::Action::\"{}\", resource) when {{ resource.environment == \"production\" }};",
            action.as_str()
        );
        assert_eq!(check(&text).map(|validated| validated.warnings), Ok(Vec::new()), "{text}");
        let applies = Kind::ALL.iter().filter(|kind| world.engine.vocabulary.applies(action, **kind));
        assert_eq!(applies.collect::<Vec<_>>(), [&Kind::Deployment], "what it is asked of");
        let admin = person(&[(Role::Admin, None)]);
        for (environment, allowed) in [("production", false), ("staging", true)] {
            let on = Resource { environment: Some(environment.into()), ..thing(Kind::Deployment) };
            assert_eq!(world.allows(&text, &admin, action, &on), allowed, "{text}, {environment}");
        }
    }
}

#[test]
fn as_many_faults_are_told_as_are_useful() {
    let text =
        "permit (principal, action == Kaizen::Action::\"agent.read\", resource) when { resource.nmae == \"x\" };\n"
            .repeat(1000);
    assert_eq!(check(&text).unwrap_err().len(), 100);
    let unguarded =
        "permit (principal, action == Kaizen::Action::\"agent.read\", resource) when { principal.attributes.a };\n"
            .repeat(1000);
    let warnings = check(&unguarded).unwrap().warnings;
    assert_eq!((warnings.len(), warnings[99].line), (100, 100));
}

#[test]
fn a_set_is_as_heavy_as_what_it_holds() {
    let world = World::new();
    let weight = |text: &str| text::deep(|| tenant::compile(&world.engine.vocabulary, text)).unwrap().unwrap().weight();
    let one =
        |n: usize| format!("forbid (principal == Kaizen::User::\"{}\", action, resource);", id::<Uuid>(n as u128));
    let alike: String = (0..500).map(one).collect();
    let action = |n: usize| Action::ALL[n % Action::ALL.len()].as_str();
    let mixed = |n: usize| {
        let (a, b) = (action(n), action(n / 7 + 1));
        format!("forbid (principal, action in [Kaizen::Action::\"{a}\", Kaizen::Action::\"{b}\"], resource);")
    };
    let differing: String = (0..500).map(mixed).collect();
    // Each policy once, and a group of some 100 bytes for each entry it is in; one list of groups where all are alike.
    for (text, groups) in [(alike, 500), (differing, 500 * 4)] {
        let weight = weight(&text);
        assert!(weight > 500 * 2048 + groups * 64, "{weight}");
        assert!(weight < 500 * 10_000, "{weight}");
    }
}
