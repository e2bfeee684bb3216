//! Asks a far side that never answers, and waits for as long as it is let.

fn main() {
    guests::get("tarpit.example").tell("asked");
}
