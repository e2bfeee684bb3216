//! Keeps the disk busy: writes to a file of its own and has it stored, reads it and the folder, over and over.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
};

fn main() {
    let mut file =
        fs::File::options().create(true).truncate(true).read(true).write(true).open("/audit/busy").expect("a file");
    let (chunk, mut read) = (vec![b'x'; 64 << 10], Vec::new());
    for round in 0..8 {
        file.seek(SeekFrom::Start(0)).expect("the beginning");
        if file.write_all(&chunk).is_err() {
            break;
        }
        file.sync_all().expect("stored");
        file.seek(SeekFrom::Start(0)).expect("the beginning");
        read.clear();
        file.read_to_end(&mut read).expect("its file");
        let entries = fs::read_dir("/audit").expect("its folder").count();
        println!("{round}: {} bytes, {entries} entries", read.len());
    }
}
