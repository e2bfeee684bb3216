//! One tiny guest for each bad behaviour (`tests/guests/`), and what must come of it: the call ends, and nothing else.
//!
//! What a component does before it is called (it takes long to compile, or describes itself with a schema that costs much) is no
//! guest's: it is uploaded to a real server in `tests/src/plugin_bombs.rs`.

mod disk;
mod neighbour;
mod network;
mod yard;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _};
use wasmtime::Store;

use self::yard::{Told, Yard, rust, tight, wat};
use super::{
    Fault, LoadError,
    limits::{Bounds, Limits},
    state::State,
};

/// Runs a guest in text, and returns the limit it was stopped by.
async fn limit(yard: &Yard, name: &str) -> String {
    match yard.run::<i32>(&yard.guest(&wat(name)), tight()).await {
        Err(Fault::Limit(why)) => why,
        ended => panic!("{name}: {ended:?}"),
    }
}

#[tokio::test]
async fn an_endless_loop_is_stopped_and_holds_no_thread() {
    let yard = Yard::new();
    let guest = yard.guest(&wat("endless-loop"));
    let started = Instant::now();
    // One thread for both: the other future only gets on because the guest yields.
    let (ended, others) = tokio::join!(yard.run::<i32>(&guest, tight()), async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        started.elapsed()
    });
    assert!(matches!(&ended, Err(Fault::Limit(why)) if why.contains("computed")), "{ended:?}");
    assert!(others < started.elapsed());
}

#[tokio::test]
async fn an_endless_loop_in_start_is_stopped() {
    assert!(limit(&Yard::new(), "endless-start").await.contains("computed"));
}

#[tokio::test]
async fn waiting_for_ever_in_the_host_is_stopped() {
    let yard = Yard::new();
    let limits = Limits { wall: Duration::from_millis(200), ..tight() };
    let told = yard.main(&yard.guest(&rust("sleep")), limits).await;
    assert!(matches!(&told.ended, Err(Fault::Limit(why)) if why.contains("0.2 s")), "{told:?}");
}

#[tokio::test]
async fn a_memory_bomb_is_stopped() {
    assert!(limit(&Yard::new(), "memory-bomb").await.contains("8 MiB"));
}

#[tokio::test]
async fn memory_is_limited_over_all_memories_together() {
    let yard = Yard::new();
    // 6 MiB each: neither is over the limit, both together are.
    assert!(limit(&yard, "two-memories").await.contains("memory"));
    let enough = Limits { memory_bytes: 16 << 20, ..tight() };
    assert_eq!(yard.run::<i32>(&yard.guest(&wat("two-memories")), enough).await, Ok(1));
}

#[tokio::test]
async fn a_table_bomb_is_stopped() {
    assert!(limit(&Yard::new(), "table-bomb").await.contains("tables"));
}

#[tokio::test]
async fn more_instances_than_allowed_are_not_made() {
    let guest = wat("many-instances");
    let yard = Yard::with(Bounds { instances: 4, ..Bounds::default() }, |_| String::new());
    let refused = match yard.sandbox.compile(&guest) {
        Err(error) => error.to_string(),
        Ok(_) => yard.run::<i32>(&yard.guest(&guest), tight()).await.unwrap_err().to_string(),
    };
    assert!(refused.contains("instances"), "{refused}");
    let yard = Yard::with(Bounds { instances: 5, ..Bounds::default() }, |_| String::new());
    assert_eq!(yard.run::<i32>(&yard.guest(&guest), tight()).await, Ok(1));
}

#[tokio::test]
async fn deep_recursion_ends_the_call_only() {
    for stack_bytes in [64 << 10, 1 << 20, 16 << 20] {
        let yard = Yard::with(Bounds { stack_bytes, ..Bounds::default() }, |_| String::new());
        for _ in 0..3 {
            assert!(limit(&yard, "recursion").await.contains("stack"));
        }
    }
}

#[tokio::test]
async fn a_trap_ends_the_call_only() {
    let yard = Yard::new();
    for _ in 0..3 {
        let ended = yard.run::<i32>(&yard.guest(&wat("trap")), tight()).await;
        assert!(matches!(&ended, Err(Fault::Trap(why)) if why.contains("divide by zero")), "{ended:?}");
    }
}

#[tokio::test]
async fn a_panic_ends_the_call_and_is_told() {
    let yard = Yard::new();
    let told = yard.main(&yard.guest(&rust("panic")), tight()).await;
    assert!(matches!(&told.ended, Err(Fault::Trap(why)) if why.contains("a number that cannot be")), "{told:?}");
}

#[tokio::test]
async fn a_huge_result_is_not_copied_out() {
    let yard = Yard::new();
    let large = yard.guest(&wat("large-result"));
    let small = Limits { transfer_bytes: 1 << 20, ..tight() };
    assert!(yard.run::<String>(&large, small).await.is_err());
    let enough = Limits { transfer_bytes: 32 << 20, ..tight() };
    assert_eq!(yard.run::<String>(&large, enough).await.unwrap().len(), 6_000_000);
    let limits = Limits { transfer_bytes: usize::MAX, ..tight() };
    let ended = yard.run::<String>(&yard.guest(&wat("gigabyte-result")), limits).await;
    assert!(matches!(ended, Err(Fault::Trap(_))), "{ended:?}");
}

#[tokio::test]
async fn a_flood_of_log_lines_is_dropped() {
    let yard = Yard::new();
    let limits = Limits { log_line_bytes: 10, cpu: Duration::from_secs(30), ..tight() };
    let context = Arc::new(yard.context(limits));
    let ended = yard.run_as::<i32>(&yard.guest(&wat("log-flood")), context.clone()).await;
    assert_eq!(ended, Ok(1000), "the call itself goes on");
    assert_eq!(context.dropped(), 997, "three lines a second, and the clock stands");
}

#[tokio::test]
async fn a_secret_is_not_logged_in_two_halves() {
    use wasmtime_wasi::p2::OutputStream as _;
    let yard = Yard::new();
    let secret = "s3cr3t-".repeat(200);
    let context = Arc::new(yard.revealing(&secret));
    let mut lines = super::stdio::Lines::new(context.clone());
    for piece in [&b"key: "[..], &secret.as_bytes()[..700], &secret.as_bytes()[700..], b"\nend\n"] {
        lines.write(bytes::Bytes::copy_from_slice(piece)).unwrap();
    }
    assert!(context.written().contains(&secret), "it was written");
    let said = context.last_words();
    assert!(said.ends_with("** end") && !said.contains("s3cr3t"), "{said}");
    let odd = context.for_people("a\u{202e}b\u{2028}c\u{1b}[2Jd", 100);
    assert_eq!(odd, "a b c [2Jd");
}

#[tokio::test]
async fn each_call_gets_a_fresh_instance() {
    let yard = Yard::new();
    let guest = yard.guest(&wat("state"));
    for _ in 0..200 {
        assert_eq!(yard.run::<i32>(&guest, tight()).await, Ok(1));
    }
}

#[tokio::test]
async fn there_is_nothing_to_see_around_it() {
    let yard = Yard::new();
    let told = yard.main(&yard.guest(&rust("surroundings")), Limits::default()).await;
    let expected = format!(
        "variables: 0\narguments: 0\ninput: 0\nfolders: false\nconnect: false\nlisten: false\ndatagram: false\nnames: false\n\
         clock: {}\n",
        yard.clock.now().timestamp()
    );
    assert_eq!(told.printed, expected, "{told:?}");
}

#[tokio::test]
async fn what_is_not_offered_is_not_loaded() {
    let sandbox = Yard::new().sandbox;
    let load = async |name: &str| {
        let component = sandbox.compile(&wat(name)).unwrap();
        sandbox.load("bad", &component).await.err()
    };
    let error = load("foreign-import").await;
    assert!(matches!(&error, Some(LoadError::Import(name)) if name == "evil:thing/all@1.0.0"), "{error:?}");
    let error = load("wasi-import").await;
    assert!(matches!(&error, Some(LoadError::World(_))), "{error:?}");
    let error = load("no-plugin").await;
    assert!(matches!(&error, Some(LoadError::World(why)) if why.contains("kaizen:plugin/manifest")), "{error:?}");
}

#[tokio::test]
async fn a_broken_component_is_refused() {
    let sandbox = Yard::new().sandbox;
    let good = rust("panic");
    let refused = |wasm: &[u8]| matches!(sandbox.compile(wasm), Err(LoadError::Component(_)));
    assert!(refused(b"") && refused(b"no wasm"));
    assert!(refused(b"\0asm\x01\0\0\0"), "a core module is no component");
    assert!(refused(b"\0asm\x0d\0\x02\0"), "of another layer");
    for cut in [4, 7, 9, 100, good.len() / 2, good.len() - 1] {
        assert!(refused(&good[..cut]), "cut at {cut}");
    }
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    for length in [8, 64, 1000, 100_000] {
        let mut bytes = vec![0; length];
        random.fill(&mut bytes[..]);
        assert!(refused(&bytes));
        // With the right beginning.
        bytes[..8].copy_from_slice(&good[..8]);
        assert!(length == 8 || refused(&bytes));
    }
    // A bit here and there: most are refused, none does harm.
    for _ in 0..40 {
        let mut bytes = good.clone();
        let at = random.random_range(8..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
        if let Ok(component) = sandbox.compile(&bytes) {
            assert!(sandbox.load("bad", &component).await.is_err(), "it is no plugin");
        }
    }
}

#[tokio::test]
async fn waiting_in_the_host_counts_too() {
    let yard = Yard::new();
    let limits = Limits { wall: Duration::from_millis(50), ..tight() };
    let slow = |store: Store<State>| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        (store, Ok(()))
    };
    let ended = yard.sandbox.call(yard.context(limits).into(), slow).await;
    assert!(matches!(&ended, Err(Fault::Limit(why)) if why.contains("0.05 s")), "{ended:?}");
}

#[tokio::test]
async fn more_calls_than_places_wait_and_all_end() {
    let yard = Yard::new();
    let guest = yard.guest(&wat("state"));
    let ended = futures::future::join_all((0..200).map(|_| yard.run::<i32>(&guest, tight()))).await;
    assert!(ended.iter().all(|ended| *ended == Ok(1)));
    let yard = Yard::with(Bounds { waiting: 256, ..Bounds::default() }, |_| String::new());
    let too_many = (0..256 + yard.sandbox.bounds().calls_per_plugin + 50).map(|_| {
        let slow = |store: Store<State>| async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            (store, Ok(1))
        };
        yard.sandbox.call(yard.context(tight()).into(), slow)
    });
    let ended = futures::future::join_all(too_many).await;
    let refused = ended.iter().filter(|ended| **ended == Err(Fault::Busy)).count();
    assert_eq!(refused, 50, "waiting is bounded");
    assert!(ended.iter().all(|ended| matches!(ended, Ok(1) | Err(Fault::Busy))));
}

#[tokio::test]
async fn one_connection_leaves_places_to_others() {
    let yard =
        Yard::with(Bounds { calls_per_plugin: 2, calls_per_connection: 1, ..Bounds::default() }, |_| String::new());
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let call = |connection: u128, gate: Option<Arc<tokio::sync::Semaphore>>| {
        let mut context = yard.context(tight());
        context.caller.connection = Some(uuid::Uuid::from_u128(connection));
        let body = |store: Store<State>| async move {
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            (store, Ok(()))
        };
        yard.sandbox.call(context.into(), body)
    };
    let mut greedy = std::pin::pin!(futures::future::join_all((0..8).map(|_| call(1, Some(gate.clone())))));
    assert!(futures::poll!(&mut greedy).is_pending());
    let other = tokio::select! {
        _ = &mut greedy => panic!("they wait at the gate"),
        other = call(2, None) => other,
    };
    assert_eq!(other, Ok(()));
    gate.add_permits(10);
    assert!(greedy.await.iter().all(Result::is_ok));
}

/// The most memory of this process while something runs, over what it was before.
async fn growth<T>(running: impl Future<Output = T>) -> (T, usize) {
    let before = neighbour::resident();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ended = done.clone();
    let watching = std::thread::spawn(move || {
        let mut most = 0;
        while !ended.load(std::sync::atomic::Ordering::Relaxed) {
            most = most.max(neighbour::resident());
            std::thread::sleep(Duration::from_millis(1));
        }
        most
    });
    let result = running.await;
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    (result, watching.join().unwrap().saturating_sub(before))
}

#[tokio::test]
async fn requests_that_are_never_sent_count_as_well() {
    let yard = Yard::new();
    let guest = yard.guest(&rust("unsent"));
    // Once, so that what is made at the first call is there.
    drop(yard.main(&guest, Limits { http_out_bytes: 0, ..Limits::default() }).await);
    let (told, grown) = growth(yard.main(&guest, Limits::default())).await;
    assert!(told.printed.starts_with("kept "), "{told:?}");
    assert!(grown < 48 << 20, "the host holds {} MiB for one call: {told:?}", grown >> 20);
    println!("requests that are never sent: the host holds {} MiB more, {}", grown >> 20, told.printed);
    let few = Limits { http_out_bytes: 1 << 20, ..Limits::default() };
    let told = yard.main(&guest, few).await;
    assert!(told.printed.starts_with("kept 1048576 bytes"), "bytes count when they are written: {told:?}");
}

#[tokio::test]
async fn what_describes_itself_cannot_use_the_network() {
    let yard = Yard::new();
    let told = yard.main(&yard.described(&rust("unsent")), Limits::default()).await;
    assert!(matches!(&told.ended, Err(Fault::Trap(why)) if why.contains("must not use the network")), "{told:?}");
    let told = yard.main(&yard.described(&rust("files")), Limits::default().describe()).await;
    assert!(told.ended.is_err() && !told.printed.contains("own: text"), "and opens nothing: {told:?}");
}

#[tokio::test]
async fn waiting_is_not_computing() {
    let yard = Yard::new();
    let limits = Limits { cpu: Duration::from_millis(500), ..Limits::default() };
    let told = yard.main(&yard.guest(&rust("waits")), limits).await;
    assert_eq!((told.ended.clone(), told.printed.as_str()), (Ok(()), "waited 100 times\n"), "{told:?}");
    assert!(!told.moved, "it stays where it is: {told:?}");
    assert!(told.cpu < Duration::from_millis(300), "{told:?}");
}

#[tokio::test]
async fn refusals_are_told_once_and_end_the_call() {
    let yard = Yard::new();
    let told = yard.main(&yard.guest(&rust("refusals")), Limits::default()).await;
    assert!(matches!(&told.ended, Err(Fault::Limit(why)) if why.contains("more than 100 times")), "{told:?}");
    let distinct = told.denials.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(distinct == told.denials.len() && told.refused > 100, "{told:?}");

    let context = Arc::new(yard.context(Limits::default()));
    let ended = yard.run_as::<i32>(&yard.guest(&wat("reveal-flood")), context.clone()).await;
    assert!(matches!(&ended, Err(Fault::Limit(why)) if why.contains("more than 100 times")), "{ended:?}");
    assert_eq!(context.denials().len(), 1, "{:?}", context.denials());
    // Each reason is different; what is logged of them is within the log's limit.
    let context = Arc::new(yard.context(Limits::default()));
    for number in 0..1000 {
        context.deny(&format!("reason {number}"));
    }
    assert_eq!((context.dropped(), context.refused()), (13, 1000), "16 are told, of which 3 lines are let through");
}

#[tokio::test]
async fn memory_of_all_calls_together_is_bounded() {
    let yard = Yard::with(Bounds { memory_total_bytes: 4 << 20, ..Bounds::default() }, |_| String::new());
    let guest = yard.guest(&wat("memory-bomb"));
    let ended = yard.run::<i32>(&guest, tight()).await;
    assert_eq!(ended, Err(Fault::MemoryInUse));
    // It is given back.
    assert_eq!(yard.run::<i32>(&yard.guest(&wat("good")), Limits::default()).await, Ok(1));
}
