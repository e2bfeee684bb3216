//! Tries to get at a secret that it may only use.

const PLACEHOLDER: &str = "Bearer {{secret:token}}";

fn main() {
    let header: &[(&str, &str)] = &[("authorization", PLACEHOLDER)];
    guests::Get { path: "/?key={{secret:token}}", ..guests::get("api.example") }.tell("address");
    guests::Get { body: "key={{secret:token}}", ..guests::get("api.example") }.tell("body");
    guests::Get { headers: header, ..guests::get("other.example") }.tell("elsewhere");
    guests::Get { headers: header, ..guests::get("api.example:81") }.tell("port");
    guests::Get { headers: &[("{{secret:token}}", "x")], ..guests::get("api.example") }.tell("name");
    // Where it is bound to it may go; that host sends back all it gets, in every way it can think of.
    match (guests::Get { headers: header, ..guests::get("api.example") }).send() {
        Ok(answer) => println!("echo: {} {}", answer.headers, answer.body),
        Err(error) => println!("echo: refused {error}"),
    }
    println!("said: {PLACEHOLDER}");
}
