//! Guests that misuse the disk: where they reach, how much they leave there, and how long they keep it busy.

use super::*;

#[tokio::test]
async fn no_path_leads_out_of_the_granted_folder() {
    let yard = Yard::new();
    let (outside, own) = (yard.folder.path(), yard.folder.path().join("own"));
    std::fs::create_dir(&own).unwrap();
    std::fs::write(outside.join("secret.txt"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret.txt", own.join("link")).unwrap();
    std::os::unix::fs::symlink(outside.join("secret.txt"), own.join("absolute")).unwrap();
    std::os::unix::fs::symlink("..", own.join("folder")).unwrap();
    let told = yard.main(&yard.guest(&rust("files")), Limits::default()).await;
    assert_eq!((told.ended.clone(), told.printed.as_str()), (Ok(()), "own: text\n"), "{told:?}");
    assert_eq!(std::fs::read_to_string(outside.join("secret.txt")).unwrap(), "secret");
    let mut names: Vec<_> = std::fs::read_dir(outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["own", "secret.txt"]);
}

#[tokio::test]
async fn sockets_and_files_of_a_call_are_few() {
    let yard = Yard::new();
    let told = yard.main(&yard.guest(&rust("descriptors")), Limits { refusals: 1000, ..Limits::default() }).await;
    assert_eq!(told.printed, "files: 16\n", "{told:?}");
    assert!(told.denials.iter().any(|why| why.contains("may open 16 sockets and files")), "{told:?}");
    let limits = || Limits { refusals: 1000, ..Limits::default() };
    let told = yard.main_connecting(&yard.guest(&rust("sockets")), limits()).await;
    assert_eq!(told.printed, "sockets: 16\n", "{told:?}");
    // All calls together have fewer.
    let bounds = Bounds { descriptors_total: 5, ..Bounds::default() };
    let yard = Yard::with(bounds, |_| String::new());
    let told = yard.main(&yard.guest(&rust("descriptors")), limits()).await;
    assert_eq!(told.printed, "files: 5\n", "{told:?}");
}

#[tokio::test]
async fn a_folder_holds_so_much_and_no_links() {
    let bounds = Bounds { folder_bytes: 1 << 20, folder_files: 10, ..Bounds::default() };
    let yard = Yard::with(bounds, |_| String::new());
    let limits = Limits { descriptors: 100, ..Limits::default() };
    let told = yard.main(&yard.guest(&rust("fill")), limits.clone()).await;
    assert_eq!(told.ended, Ok(()), "{told:?}");
    assert!(told.printed.starts_with("symbolic link: refused\nhard link: refused\nsize: refused\n"), "{told:?}");
    let own = yard.folder.path().join("own");
    let sizes = std::fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    let sizes: Vec<u64> = sizes.collect();
    assert!(sizes.len() <= 10 && sizes.iter().sum::<u64>() <= 1 << 20, "{sizes:?}");
    // What lies there already counts in the next call; what is too much is told.
    std::fs::write(own.join("more"), vec![0; 1 << 20]).unwrap();
    let told = yard.main(&yard.guest(&rust("fill")), limits).await;
    assert!(matches!(&told.ended, Err(Fault::Setup(why)) if why.contains("plugin_folder_mib")), "{told:?}");
}

#[tokio::test]
async fn a_busy_disk_holds_no_thread() {
    let yard = Yard::new();
    let guest = yard.guest(&rust("sync"));
    let rounds = std::cell::Cell::new(0);
    // One thread for both: what is to be stored is waited for elsewhere.
    let others = async {
        loop {
            tokio::task::yield_now().await;
            rounds.set(rounds.get() + 1);
        }
    };
    let told = tokio::select! { told = yard.main(&guest, Limits::default()) => told, () = others => unreachable!() };
    assert_eq!((told.ended.clone(), told.printed.lines().count()), (Ok(()), 8), "{told:?}");
    assert!(rounds.get() > 16, "{} rounds: {told:?}", rounds.get());
}

#[test]
fn a_disk_that_falls_silent_during_a_call_holds_no_thread_that_others_wait_for() {
    // As the server's own, with one thread for all that takes long.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).max_blocking_threads(1).enable_all();
    runtime.build().unwrap().block_on(async {
        let yard = Yard::new();
        let own = yard.folder.path().join("own");
        std::fs::create_dir(&own).unwrap();
        // Who opens it to write waits until somebody reads, as for a disk that does not answer.
        let silent = own.join("file");
        assert!(std::process::Command::new("mkfifo").arg(&silent).status().unwrap().success());
        let guest = yard.guest(&rust("fill"));
        let mut ended = Vec::new();
        for _ in 0..3 {
            let limits = Limits { wall: Duration::from_millis(500), ..Limits::default() };
            ended.push(yard.main(&guest, limits).await.ended);
        }
        let hashed = tokio::time::timeout(Duration::from_secs(10), tokio::task::spawn_blocking(|| "a password")).await;
        // Lets go of what waits.
        let _reader = std::fs::OpenOptions::new().read(true).write(true).open(&silent).unwrap();
        assert!(ended.iter().all(|ended| matches!(ended, Err(Fault::Limit(_)))), "{ended:?}");
        assert_eq!(hashed.unwrap().unwrap(), "a password");
    });
}
