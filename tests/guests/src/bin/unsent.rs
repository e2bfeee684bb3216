//! Keeps requests that it never sends, each with as much of a body as the host takes.

use wasip2::http::types::{Fields, OutgoingRequest};

fn main() {
    let mut kept = Vec::new();
    let mut bytes = 0;
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..100 {
        let request = OutgoingRequest::new(Fields::new());
        let body = request.body().expect("a body");
        let stream = body.write().expect("a stream");
        while let Ok(room @ 1..) = stream.check_write() {
            let room = usize::try_from(room).expect("32 bits").min(chunk.len());
            if stream.write(&chunk[..room]).is_err() {
                break;
            }
            bytes += room;
        }
        drop(stream);
        drop(body);
        kept.push(request);
    }
    println!("kept {bytes} bytes");
    std::thread::sleep(std::time::Duration::from_millis(50));
    // On and on: at some number of them the host ends this.
    loop {
        kept.push(OutgoingRequest::new(Fields::new()));
    }
}
