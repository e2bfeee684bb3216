//! Fills the folder that it was given, in every way there is.

use std::{fs, io::Write};

use wasip2::filesystem::preopens::get_directories;

fn main() {
    let folder = get_directories().into_iter().find(|(_, name)| name == "/audit").expect("its folder").0;
    let told = |what: &str, done: bool| println!("{what}: {}", if done { "DONE" } else { "refused" });
    told("symbolic link", folder.symlink_at("../../master.key", "link").is_ok());
    fs::write("/audit/file", "x").expect("a file");
    told("hard link", fs::hard_link("/audit/file", "/audit/other").is_ok());
    told("size", fs::File::create("/audit/sparse").expect("a file").set_len(1 << 40).is_ok());
    let chunk = vec![b'x'; 64 << 10];
    let mut written = 0;
    for n in 0..50 {
        let Ok(mut file) = fs::File::create(format!("/audit/{n}")) else { break };
        while file.write_all(&chunk).is_ok() {
            written += chunk.len();
        }
    }
    for n in 0..50 {
        let _ = fs::create_dir(format!("/audit/folder-{n}"));
    }
    println!("written: {written}");
}
