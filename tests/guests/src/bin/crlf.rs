//! Tries to write a header, or a second request, of its own into the first.

fn main() {
    let evil = "x\r\nevil: 1\r\n\r\nGET /evil HTTP/1.1\r\n\r\n";
    guests::Get { headers: &[("note", evil)], ..guests::get("api.example") }.tell("value");
    guests::Get { headers: &[(evil, "x")], ..guests::get("api.example") }.tell("name");
    guests::Get { path: &format!("/{evil}"), ..guests::get("api.example") }.tell("path");
    guests::get(&format!("api.example{evil}")).tell("authority");
    guests::Get { headers: &[("authorization", "{{secret:broken}}")], ..guests::get("api.example") }.tell("secret");
}
