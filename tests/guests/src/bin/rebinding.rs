//! Asks for the same name twice; in between its owner lets it point inside.

fn main() {
    guests::get("api.example").tell("first");
    guests::get("api.example").tell("second");
}
