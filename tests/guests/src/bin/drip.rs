//! Asks a far side whose answer never ends, again and again until it is refused at once.

fn main() {
    guests::get("api.example").tell("first");
    guests::get("api.example").tell("second");
}
