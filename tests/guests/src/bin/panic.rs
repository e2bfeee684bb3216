//! Panics.

fn main() {
    panic!("a number that cannot be");
}
