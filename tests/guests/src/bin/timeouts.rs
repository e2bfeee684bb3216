//! Sends requests with timeouts of its own to far sides that do not answer, and that stop in the middle.

fn main() {
    guests::Get { first_byte: Some(50), ..guests::get("silent.example") }.tell("first byte");
    guests::Get { between: Some(50), ..guests::get("halts.example") }.tell("between");
}
