//! What good plugins feel of a bad one beside them: nothing worth mentioning, and afterwards the memory is back. One of the
//! good ones computes, the other sends requests.
//!
//! Good and bad take turns: some calls of the good one alone, some while the bad one runs as fast as it may, and so on. Both kinds
//! meet whatever else the machine does, so their medians can be compared.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::task::AbortOnDropHandle;

use super::yard::{Yard, rust, tight, wat};
use crate::sandbox::limits::{Bounds, Limits};

const ROUNDS: usize = 6;
const CALLS: usize = 25;
/// What a measurement on a machine with other work may be off by. A guest that held a thread would cost 10 ms and more,
/// for each of the dozen times that a call which asks waits for another thread.
const SLACK: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(5)];

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Memory of this process.
pub(super) fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// The two good ones.
const GOOD: [&str; 2] = ["computes", "asks"];

async fn measure(name: &str, wasm: &[u8], limits: Limits, answer: &'static str) {
    let answers = move |target: &str| if target.contains("good.") { "hello" } else { answer }.to_owned();
    let yard = Arc::new(Yard::with(Bounds { folder_bytes: 4 << 20, folder_files: 50, ..Bounds::default() }, answers));
    let (good, asks, bad) = (yard.guest(&wat("good")), yard.guest(&rust("good")), yard.guest(wasm));
    let ended = Arc::new(AtomicU32::new(0));
    let begin = || {
        let (yard, bad, limits, ended) = (yard.clone(), bad.clone(), limits.clone(), ended.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                // Those in text and those in Rust differ in how they are called only.
                if bad.pre.component().component_type().exports(yard.sandbox.engine()).any(|(name, _)| name == "run") {
                    drop(yard.run::<i32>(&bad, limits.clone()).await);
                } else {
                    drop(yard.main(&bad, limits.clone()).await);
                }
                ended.fetch_add(1, Ordering::Relaxed);
            }
        }))
    };
    let calls = async |times: &mut [Vec<Duration>; 2]| {
        for _ in 0..CALLS {
            let limits = || Limits { cpu: Duration::from_secs(10), ..Limits::default() };
            let started = Instant::now();
            assert_eq!(yard.run::<i32>(&good, limits()).await, Ok(1));
            times[0].push(started.elapsed());
            let started = Instant::now();
            assert_eq!(yard.main_asking(&asks, limits()).await.printed, "3 answers\n");
            times[1].push(started.elapsed());
        }
    };
    calls(&mut Default::default()).await;
    let before = resident();
    let (mut alone, mut beside) = <([Vec<Duration>; 2], [Vec<Duration>; 2])>::default();
    for _ in 0..ROUNDS {
        calls(&mut alone).await;
        let running = begin();
        // It is at it: one call has ended, or one goes on for long.
        tokio::time::timeout(Duration::from_millis(50), async {
            let so_far = ended.load(Ordering::Relaxed);
            while ended.load(Ordering::Relaxed) == so_far {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .ok();
        calls(&mut beside).await;
        drop(running);
    }
    for (((what, slack), alone), beside) in GOOD.into_iter().zip(SLACK).zip(alone).zip(beside) {
        let (alone, beside) = (median(alone), median(beside));
        let ratio = beside.as_secs_f64() / alone.as_secs_f64();
        println!(
            "beside {name:<24} a good plugin that {what:<8} takes {beside:>9.1?}, alone {alone:>9.1?}: {ratio:.2}x"
        );
        assert!(beside <= alone * 2 + slack, "beside {name} a call that {what} takes {beside:?}, alone {alone:?}");
    }
    // What its last call held goes with it, within a tick.
    let mut grown = usize::MAX;
    for _ in 0..200 {
        grown = resident().saturating_sub(before);
        if grown < 64 << 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(grown < 64 << 20, "after {name} the process has {} MiB more", grown >> 20);
}

macro_rules! beside {
    ($($test:ident: $wasm:expr $(, answered $answer:literal)?;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            let answer = ["hello" $(, $answer)?];
            measure(stringify!($test), &$wasm, tight(), answer[answer.len() - 1]).await;
        }
    )*};
}

beside! {
    an_endless_loop: wat("endless-loop");
    an_endless_start: wat("endless-start");
    a_memory_bomb: wat("memory-bomb");
    two_memories: wat("two-memories");
    a_table_bomb: wat("table-bomb");
    many_instances: wat("many-instances");
    deep_recursion: wat("recursion");
    a_trap: wat("trap");
    a_flood_of_log_lines: wat("log-flood");
    a_flood_of_reveals: wat("reveal-flood");
    a_huge_result: wat("large-result");
    a_gigabyte_result: wat("gigabyte-result");
    a_panic: rust("panic");
    a_sleeper: rust("sleep");
    a_thousand_requests: rust("requests");
    line_breaks: rust("crlf");
    a_drip: rust("drip"), answered "drip";
    a_look_around_the_files: rust("files");
    odd_methods: rust("methods");
    a_name_that_turns: rust("rebinding");
    a_redirect: rust("redirect"), answered "302 http://169.254.169.254/";
    a_secret: rust("secret");
    a_look_around: rust("surroundings");
    requests_never_sent: rust("unsent");
    many_waits: rust("waits");
    a_flood_of_refusals: rust("refusals");
    many_descriptors: rust("descriptors");
    many_sockets: rust("sockets");
    a_full_folder: rust("fill");
    timeouts_of_its_own: rust("timeouts"), answered "silent";
}

/// Not one bad call at a time, but as many as one connection may have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_endless_loops_at_once() {
    let yard = Arc::new(Yard::new());
    let (good, asks, bad) = (yard.guest(&wat("good")), yard.guest(&rust("good")), yard.guest(&wat("endless-loop")));
    let limits = Limits { cpu: Duration::from_secs(60), wall: Duration::from_secs(60), ..tight() };
    let mut medians = Vec::new();
    for loops in [0, 8] {
        let running: Vec<_> = (0..loops)
            .map(|_| {
                let (yard, bad, limits) = (yard.clone(), bad.clone(), limits.clone());
                AbortOnDropHandle::new(tokio::spawn(async move { drop(yard.run::<i32>(&bad, limits).await) }))
            })
            .collect();
        // Until all of them have been found to compute for long.
        tokio::time::sleep(Duration::from_millis(if loops == 0 { 0 } else { 500 })).await;
        let mut times = <[Vec<Duration>; 2]>::default();
        for _ in 0..CALLS * 2 {
            let limits = || Limits { cpu: Duration::from_secs(10), ..Limits::default() };
            let started = Instant::now();
            assert_eq!(yard.run::<i32>(&good, limits()).await, Ok(1));
            times[0].push(started.elapsed());
            let started = Instant::now();
            assert_eq!(yard.main_asking(&asks, limits()).await.printed, "3 answers\n");
            times[1].push(started.elapsed());
        }
        medians.push(times.map(median));
        drop(running);
    }
    for (number, what) in GOOD.into_iter().enumerate() {
        let (alone, beside) = (medians[0][number], medians[1][number]);
        println!("beside 8 endless loops a good plugin that {what} takes {beside:.1?}, alone {alone:.1?}");
        assert!(beside <= alone * 3 + Duration::from_millis(5), "{what}: {beside:?}, alone {alone:?}");
    }
}
