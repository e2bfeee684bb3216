//! Tries to leave the folder it was given.

use std::fs;

fn main() {
    let outside = ["/audit/../secret.txt", "/audit/a/../../secret.txt", "/secret.txt", "/etc/passwd", "../secret.txt"];
    let links = ["/audit/link", "/audit/absolute", "/audit/folder/secret.txt"];
    for path in outside.iter().chain(&links) {
        if let Ok(text) = fs::read_to_string(path) {
            println!("ESCAPED: read {path}: {text}");
        }
        if fs::write(path, "overwritten").is_ok() {
            println!("ESCAPED: wrote {path}");
        }
    }
    for (from, to) in [("/audit/../secret.txt", "/audit/hard"), ("/audit/link", "/audit/hard2")] {
        if fs::hard_link(from, to).is_ok() && fs::read_to_string(to).is_ok() {
            println!("ESCAPED: linked {from}");
        }
        if fs::rename(from, to).is_ok() && fs::read_to_string(to).is_ok() {
            println!("ESCAPED: moved {from}");
        }
    }
    for folder in ["/", "/audit/..", "/audit/folder", "/proc/self"] {
        if let Ok(entries) = fs::read_dir(folder) {
            let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
            if names.iter().any(|name| name == "secret.txt" || name == "environ") {
                println!("ESCAPED: listed {folder}");
            }
        }
    }
    // What it was given works.
    fs::create_dir_all("/audit/own").expect("a folder");
    fs::write("/audit/own/file", "text").expect("a file");
    println!("own: {}", fs::read_to_string("/audit/own/file").expect("its file"));
}
