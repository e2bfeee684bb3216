//! Does nothing but wait, a hundred times and for a moment only.

fn main() {
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(15));
    }
    println!("waited 100 times");
}
