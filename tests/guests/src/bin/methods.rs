//! Methods that make a tunnel, or send back what the host put in; and how its body is framed.

use wasip2::http::types::Method;

fn main() {
    for (what, method) in
        [("connect", Method::Connect), ("trace", Method::Trace), ("other", Method::Other("TRACE".into()))]
    {
        guests::Get { method: Some(method), ..guests::get("api.example") }.tell(what);
    }
    let headers = [("content-length", "5"), ("te", "trailers"), ("trailer", "x")];
    guests::Get { headers: &headers, body: "hello", ..guests::get("api.example") }.tell("length");
}
