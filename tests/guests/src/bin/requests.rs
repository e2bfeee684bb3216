//! Sends a thousand requests.

fn main() {
    let sent = (0..1000).filter(|_| guests::get("api.example").send().is_ok()).count();
    println!("{sent} of 1000");
}
