//! Looks around: environment, arguments, input, folders, clock, a socket of its own.

use std::{
    io::Read,
    net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    time::{SystemTime, UNIX_EPOCH},
};

fn main() {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).ok();
    println!("variables: {}", std::env::vars().count());
    println!("arguments: {}", std::env::args().count());
    println!("input: {}", input.len());
    println!("folders: {}", std::fs::read_dir("/").is_ok());
    println!("connect: {}", TcpStream::connect("127.0.0.1:1").map_err(|error| error.kind()).is_ok());
    println!("listen: {}", TcpListener::bind("127.0.0.1:0").is_ok());
    println!("datagram: {}", UdpSocket::bind("127.0.0.1:0").is_ok());
    println!("names: {}", "localhost:80".to_socket_addrs().is_ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    println!("clock: {now}");
}
