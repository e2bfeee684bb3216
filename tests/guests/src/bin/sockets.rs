//! Makes sockets and closes none.

use wasip2::sockets::{network::IpAddressFamily, tcp_create_socket::create_tcp_socket};

fn main() {
    let sockets: Vec<_> = (0..100).map_while(|_| create_tcp_socket(IpAddressFamily::Ipv4).ok()).collect();
    println!("sockets: {}", sockets.len());
}
