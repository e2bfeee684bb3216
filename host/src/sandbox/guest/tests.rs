//! One tiny guest for each bad behaviour.

use std::{collections::BTreeMap, time::Instant};

use wasmtime::component::{ComponentNamedList, Lift};

use super::*;
use crate::sandbox::egress::{Client, Policy, SystemResolver};

fn sandbox() -> Sandbox {
    let policy = Policy { allow: vec![], allow_private: vec![] };
    let cache = Cache::new(std::env::temp_dir().join("kaizen-test-compiled"), &[9; 32]);
    Sandbox::new(cache, Client::new(policy, Arc::new(SystemResolver))).unwrap()
}

fn guest(sandbox: &Sandbox, wat: &str) -> Guest {
    let component = sandbox.compile(&wat::parse_str(wat).unwrap()).unwrap();
    Guest {
        pre: sandbox.plain.instantiate_pre(&component).unwrap(),
        manifest: Arc::new(Manifest {
            name: "bad".into(),
            version: "1.0.0".into(),
            title: "Bad".into(),
            description: String::new(),
            config_schema: "{}".into(),
            secrets: vec![],
            capabilities: vec![],
        }),
        calls: Arc::new(Semaphore::new(CALLS_EACH)),
        waiting: Arc::new(Semaphore::new(CALLS_EACH + WAITING)),
    }
}

fn context(sandbox: &Sandbox, limits: Limits) -> Arc<Context> {
    let grants = Grants::default();
    let vault = Vault::new(&grants, &BTreeMap::new());
    Arc::new(sandbox.context("bad", "test".into(), grants, vault, limits))
}

fn limits() -> Limits {
    Limits {
        cpu: Duration::from_millis(100),
        wall: Duration::from_secs(10),
        memory_bytes: 8 << 20,
        ..Limits::default()
    }
}

async fn run<R>(sandbox: &Sandbox, guest: &Guest, limits: Limits) -> Result<R, Fault>
where
    (R,): ComponentNamedList + Lift + Send + Sync + 'static,
    R: Send + Sync + 'static,
{
    let pre = guest.pre.clone();
    let body = |mut store: Store<State>| async move {
        let called = async {
            let instance = pre.instantiate_async(&mut store).await?;
            let run = instance.get_typed_func::<(), (R,)>(&mut store, "run")?;
            Ok(run.call_async(&mut store, ()).await?.0)
        };
        let called = called.await;
        (store, called)
    };
    sandbox.call(guest, context(sandbox, limits), body).await
}

/// A component whose `run` returns the `s32` that this core function body leaves.
fn component(module: &str) -> String {
    format!(
        r#"(component
            (core module $m {module})
            (core instance $i (instantiate $m))
            (func (export "run") (result s32) (canon lift (core func $i "run"))))"#
    )
}

#[tokio::test]
async fn an_endless_loop_is_stopped_and_holds_no_thread() {
    let sandbox = sandbox();
    let guest = guest(&sandbox, &component(r#"(func (export "run") (result i32) (loop (br 0)) (i32.const 0))"#));
    let started = Instant::now();
    // One thread for both: the other future only gets on because the guest yields.
    let (ended, ticks) = tokio::join!(run::<i32>(&sandbox, &guest, limits()), async {
        let mut ticks = 0;
        while ticks < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            ticks += 1;
        }
        (ticks, started.elapsed())
    });
    assert!(matches!(&ended, Err(Fault::Limit(why)) if why.contains("computed")), "{ended:?}");
    assert!(ticks.1 < started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn memory_is_limited_over_all_memories_together() {
    let sandbox = sandbox();
    let grow = r#"(memory 1)
        (func (export "run") (result i32)
            (loop (br_if 0 (i32.ne (memory.grow (i32.const 8)) (i32.const -1)))) (unreachable))"#;
    let bomb = guest(&sandbox, &component(grow));
    let ended = run::<i32>(&sandbox, &bomb, limits()).await;
    assert!(matches!(&ended, Err(Fault::Limit(why)) if why.contains("8 MiB")), "{ended:?}");
    // Two modules of 6 MiB each: neither is over the limit, both together are.
    let two = r#"(component
        (core module $m (memory 96) (func (export "run") (result i32) (i32.const 1)))
        (core instance $a (instantiate $m))
        (core instance $b (instantiate $m))
        (func (export "run") (result s32) (canon lift (core func $a "run"))))"#;
    let ended = run::<i32>(&sandbox, &guest(&sandbox, two), limits()).await;
    assert!(matches!(&ended, Err(Fault::Limit(why)) if why.contains("memory")), "{ended:?}");
    let enough = Limits { memory_bytes: 16 << 20, ..limits() };
    assert_eq!(run::<i32>(&sandbox, &guest(&sandbox, two), enough).await, Ok(1));
}

#[tokio::test]
async fn deep_recursion_ends_the_call_only() {
    let sandbox = sandbox();
    let guest =
        guest(&sandbox, &component(r#"(func $f (export "run") (result i32) (i32.add (call $f) (i32.const 1)))"#));
    for _ in 0..3 {
        let ended = run::<i32>(&sandbox, &guest, limits()).await;
        assert!(matches!(&ended, Err(Fault::Limit(why)) if why.contains("stack")), "{ended:?}");
    }
}

#[tokio::test]
async fn a_huge_result_is_not_copied_out() {
    let sandbox = sandbox();
    let huge = r#"(component
        (core module $m (memory (export "mem") 100)
            (func (export "run") (result i32)
                (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 6000000)) (i32.const 0)))
        (core instance $i (instantiate $m))
        (func (export "run") (result string) (canon lift (core func $i "run") (memory (core memory $i "mem")))))"#;
    let guest = guest(&sandbox, huge);
    let small = Limits { transfer_bytes: 1 << 20, ..limits() };
    assert!(run::<String>(&sandbox, &guest, small).await.is_err());
    let large = Limits { transfer_bytes: 32 << 20, ..limits() };
    assert_eq!(run::<String>(&sandbox, &guest, large).await.unwrap().len(), 6_000_000);
}

#[tokio::test]
async fn a_flood_of_log_lines_is_dropped() {
    let sandbox = sandbox();
    let flood = r#"(component
        (import "kaizen:plugin/log@0.1.0" (instance $log
            (type $l (enum "debug" "info" "warn" "error"))
            (export "level" (type $level (eq $l)))
            (export "write" (func (param "level" $level) (param "message" string)))))
        (core module $mem (memory (export "mem") 1))
        (core instance $memory (instantiate $mem))
        (core func $write (canon lower (func $log "write") (memory (core memory $memory "mem"))))
        (core module $m
            (import "log" "write" (func $write (param i32 i32 i32)))
            (func (export "run") (result i32) (local $n i32)
                (loop
                    (call $write (i32.const 0) (i32.const 0) (i32.const 60000))
                    (local.set $n (i32.add (local.get $n) (i32.const 1)))
                    (br_if 0 (i32.lt_u (local.get $n) (i32.const 1000))))
                (local.get $n)))
        (core instance $imports (export "write" (func $write)))
        (core instance $i (instantiate $m (with "log" (instance $imports))))
        (func (export "run") (result s32) (canon lift (core func $i "run"))))"#;
    let guest = guest(&sandbox, flood);
    let limits = Limits { log_lines: 3, log_line_bytes: 10, cpu: Duration::from_secs(5), ..limits() };
    assert_eq!(run::<i32>(&sandbox, &guest, limits).await, Ok(1000), "the call itself goes on");
}

#[tokio::test]
async fn each_call_gets_a_fresh_instance() {
    let sandbox = sandbox();
    let counter = r#"(memory 1)
        (func (export "run") (result i32)
            (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))) (i32.load (i32.const 0)))"#;
    let guest = guest(&sandbox, &component(counter));
    for _ in 0..200 {
        assert_eq!(run::<i32>(&sandbox, &guest, limits()).await, Ok(1));
    }
}

#[tokio::test]
async fn waiting_in_the_host_counts_too() {
    let sandbox = sandbox();
    let guest = guest(&sandbox, &component(r#"(func (export "run") (result i32) (i32.const 1))"#));
    let limits = Limits { wall: Duration::from_millis(50), ..limits() };
    let slow = |store: Store<State>| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        (store, Ok(()))
    };
    let ended = sandbox.call(&guest, context(&sandbox, limits), slow).await;
    assert!(matches!(&ended, Err(Fault::Limit(why)) if why.contains("0.05 s")), "{ended:?}");
}

#[tokio::test]
async fn more_calls_than_places_wait_and_all_end() {
    let sandbox = sandbox();
    let guest = guest(&sandbox, &component(r#"(memory 16) (func (export "run") (result i32) (i32.const 1))"#));
    let calls = (0..200).map(|_| run::<i32>(&sandbox, &guest, limits()));
    let ended = futures::future::join_all(calls).await;
    assert!(ended.iter().all(|ended| *ended == Ok(1)));
    let too_many = (0..WAITING + CALLS_EACH + 50).map(|_| {
        let slow = |store: Store<State>| async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            (store, Ok(1))
        };
        sandbox.call(&guest, context(&sandbox, limits()), slow)
    });
    let ended = futures::future::join_all(too_many).await;
    let refused = ended.iter().filter(|ended| **ended == Err(Fault::Busy)).count();
    assert_eq!(refused, 50, "waiting is bounded");
    assert!(ended.iter().all(|ended| matches!(ended, Ok(1) | Err(Fault::Busy))));
}

#[tokio::test]
async fn what_is_not_offered_is_not_loaded() {
    let sandbox = sandbox();
    let load = async |wat: &str| {
        let component = sandbox.compile(&wat::parse_str(wat).unwrap()).unwrap();
        sandbox.load("bad", &component).await.err()
    };
    let error = load(r#"(component (import "evil:thing/all@1.0.0" (instance)))"#).await;
    assert!(matches!(&error, Some(LoadError::Import(name)) if name == "evil:thing/all@1.0.0"), "{error:?}");
    let error = load(r#"(component (import "wasi:keyvalue/store@0.2.0" (instance (export "open" (func)))))"#).await;
    assert!(matches!(&error, Some(LoadError::World(_))), "{error:?}");
    let error = load("(component)").await;
    assert!(matches!(&error, Some(LoadError::World(why)) if why.contains("kaizen:plugin/manifest")), "{error:?}");
    assert!(matches!(sandbox.compile(b"no wasm"), Err(LoadError::Component(_))));
    assert!(
        matches!(sandbox.compile(b"\0asm\x01\0\0\0"), Err(LoadError::Component(_))),
        "a core module is no component"
    );
}
