//! The PROXY protocol, version 2 (haproxy.org/download/2.8/doc/proxy-protocol.txt): what a proxy says of a connection before
//! anything else is sent over it.

use std::{io, net::IpAddr};

use ppp::v2::{Addresses, Command, Header, Protocol};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Signature, version, family and length.
const FIXED: usize = 16;
/// Bytes of addresses and further fields that are read at the most; senders use a few hundred.
const VARIABLE: usize = 4096;

/// Reads the header, and not a byte more. Returns the client's address; none where the proxy speaks for itself, as in its
/// health checks, or does not know an IP address.
///
/// # Errors
/// If what comes is no such header.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut bytes = vec![0; FIXED];
    stream.read_exact(&mut bytes).await?;
    if !bytes.starts_with(ppp::v2::PROTOCOL_PREFIX) {
        return Err(invalid("no PROXY protocol of version 2".to_owned()));
    }
    let length = match bytes.as_slice() {
        [.., high, low] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    if length > VARIABLE {
        return Err(invalid(format!("a PROXY protocol header of {length} bytes")));
    }
    let mut variable = vec![0; length];
    stream.read_exact(&mut variable).await?;
    bytes.extend_from_slice(&variable);
    let header = Header::try_from(bytes.as_slice()).map_err(|error| invalid(error.to_string()))?;
    Ok(match (header.command, header.protocol, header.addresses) {
        (Command::Proxy, Protocol::Stream, Addresses::IPv4(addresses)) => Some(addresses.source_address.into()),
        (Command::Proxy, Protocol::Stream, Addresses::IPv6(addresses)) => Some(addresses.source_address.into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    async fn read_all(bytes: &[u8]) -> (Result<Option<String>, String>, usize) {
        let mut rest = bytes;
        let found = read(&mut rest).await;
        (found.map(|address| address.map(|address| address.to_string())).map_err(|e| e.to_string()), rest.len())
    }

    fn header(command: u8, family: u8, variable: &[u8]) -> Vec<u8> {
        let length = u16::try_from(variable.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, variable].concat()
    }

    #[tokio::test]
    async fn the_address_is_read_and_not_a_byte_more() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        let bytes = [header(0x21, 0x11, &v4), b"GET /".to_vec()].concat();
        assert_eq!(read_all(&bytes).await, (Ok(Some("192.0.2.7".into())), 5));
        let with_fields = [&v4[..], &[4, 0, 1, 0]].concat();
        assert_eq!(read_all(&header(0x21, 0x11, &with_fields)).await, (Ok(Some("192.0.2.7".into())), 0));
        let v6 = [&"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets()[..], &[0; 16], &[0; 4]].concat();
        assert_eq!(read_all(&header(0x21, 0x21, &v6)).await, (Ok(Some("2001:db8::7".into())), 0));
        assert_eq!(read_all(&header(0x20, 0x00, &[])).await, (Ok(None), 0), "a health check");
        assert_eq!(read_all(&header(0x21, 0x31, &[0; 216])).await, (Ok(None), 0), "a Unix socket");
        assert_eq!(read_all(&header(0x20, 0x11, &v4)).await, (Ok(None), 0), "LOCAL: addresses are to be ignored");
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n".to_vec(),
            header(0x11, 0x11, &[0; 12]),
            header(0x2f, 0x11, &[0; 12]),
            header(0x21, 0x41, &[0; 12]),
            header(0x21, 0x11, &[0; 4]),
            header(0x21, 0x11, &[0; 5000]),
            SIGNATURE.to_vec(),
            header(0x21, 0x21, &[0; 36])[..40].to_vec(),
        ] {
            assert!(read_all(&bytes).await.0.is_err(), "{bytes:?}");
        }
    }
}
