//! Follows wherever the answer sends it.

fn main() {
    let answer = guests::get("api.example").send().expect("an answer");
    let location = answer.headers.lines().find_map(|line| line.strip_prefix("location: ")).expect("a redirect");
    let (authority, path) = location.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("http://…/…");
    guests::Get { path: &format!("/{path}"), ..guests::get(authority) }.tell("followed");
}
