//! Asks for what it is refused, for ever.

fn main() {
    loop {
        let _ = guests::Get { path: "/?key={{secret:token}}", ..guests::get("api.example") }.send();
    }
}
