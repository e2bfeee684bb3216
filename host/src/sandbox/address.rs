//! Which addresses may be reached at all, decided after name resolution.
//!
//! | address | verdict |
//! |---|---|
//! | globally reachable unicast, IPv4 or IPv6 | allowed |
//! | unspecified, multicast, broadcast | refused, always |
//! | loopback, private (RFC 1918), shared (RFC 6598), link-local, unique-local | refused, unless the operator lists the network |
//! | Azure's WireServer, a metadata service at a public address (168.63.129.16) | refused, unless listed |
//! | documentation, benchmarking, reserved, 6to4, Teredo, NAT64, anything else outside `2000::/3` | refused, unless listed |
//! | IPv4 written as IPv6 (`::ffff:a.b.c.d`) | as the IPv4 address it is |
//!
//! The ranges are the IANA special-purpose registries' (RFC 6890 and its updates). Addresses that carry an IPv4 address
//! inside (6to4, Teredo, NAT64) are refused whatever they carry: the gateway that unpacks them is not ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Special-purpose IPv4 blocks that are not globally reachable, and addresses within globally reachable ones at which clouds
/// serve a machine its own metadata and credentials. The metadata services of the other clouds are in blocks of the first
/// kind: 169.254.0.0/16 (AWS, Google, Oracle, DigitalOcean and most others), 100.64.0.0/10 (Alibaba's 100.100.100.200),
/// 192.0.0.0/24 (Oracle's 192.0.0.192), fc00::/7 (AWS's fd00:ec2::254, Google's fd20:ce::254).
const V4: &[([u8; 4], u8)] = &[
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    // Azure: https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    ([168, 63, 129, 16], 32),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 31, 196, 0], 24),
    ([192, 52, 193, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([192, 175, 48, 0], 24),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// Within `2000::/3`, what is not plain global unicast; everything outside `2000::/3` is refused anyway.
const V6: &[([u16; 8], u8)] = &[
    // IETF protocol assignments: Teredo, ORCHID, benchmarking and the like.
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    // 6to4.
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16),
    ([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
];

/// The address that a connection to this one would reach: an IPv4 address written as IPv6 is that IPv4 address.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Whether an address is globally reachable unicast.
pub fn is_global(address: IpAddr) -> bool {
    match canonical(address) {
        IpAddr::V4(v4) => {
            !V4.iter().any(|(base, bits)| Ipv4Net::new(Ipv4Addr::from(*base), *bits).is_ok_and(|net| net.contains(&v4)))
        }
        IpAddr::V6(v6) => {
            v6.segments().first().is_some_and(|first| first & 0xe000 == 0x2000)
                && !V6
                    .iter()
                    .any(|(base, bits)| Ipv6Net::new(Ipv6Addr::from(*base), *bits).is_ok_and(|net| net.contains(&v6)))
        }
    }
}

/// Whether a connection to this address may be made; `listed` says whether the operator's `egress_allow_private` has it.
pub fn may_connect(address: IpAddr, listed: impl Fn(IpAddr) -> bool) -> bool {
    let address = canonical(address);
    let never =
        address.is_unspecified() || address.is_multicast() || matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !never && (is_global(address) || listed(address))
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;

    fn may_connect(address: IpAddr, nets: &[IpNet]) -> bool {
        super::may_connect(address, |address| nets.iter().any(|net| net.contains(&address)))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_table_holds() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "168.63.129.16",
            "::ffff:168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd20:ce::254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_global(ip(text)), "{text} must be refused");
            assert!(!may_connect(ip(text), &[]), "{text} must be refused");
        }
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "128.0.0.1",
            "168.63.129.15",
            "168.63.129.17",
            "172.15.255.255",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.255.255",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(may_connect(ip(text), &[]), "{text} must be allowed");
        }
    }

    #[test]
    fn the_operator_opens_networks_and_nothing_more() {
        let nets: Vec<IpNet> = vec!["127.0.0.1/32".parse().unwrap(), "fd00::/8".parse().unwrap()];
        assert!(may_connect(ip("127.0.0.1"), &nets));
        assert!(may_connect(ip("::ffff:127.0.0.1"), &nets));
        assert!(may_connect(ip("fd12::1"), &nets));
        assert!(!may_connect(ip("127.0.0.2"), &nets));
        assert!(!may_connect(ip("fc00::1"), &nets));
        let all: Vec<IpNet> = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        for text in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::1"] {
            assert!(!may_connect(ip(text), &all), "{text} is refused even where everything is listed");
        }
    }

    proptest! {
        #[test]
        fn v4_agrees_with_the_standard_library(bits: u32) {
            let v4 = Ipv4Addr::from(bits);
            let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast() || v4.is_documentation()
                || v4.is_unspecified() || v4.is_multicast() || v4.octets()[0] == 0 || v4.octets()[0] >= 240;
            prop_assert!(!(special && is_global(v4.into())));
        }

        #[test]
        fn v4_written_as_v6_is_judged_as_v4(bits: u32) {
            let v4 = Ipv4Addr::from(bits);
            prop_assert_eq!(is_global(v4.to_ipv6_mapped().into()), is_global(v4.into()));
        }

        #[test]
        fn v6_is_only_ever_global_unicast(bits: u128) {
            let v6 = Ipv6Addr::from(bits);
            prop_assume!(v6.to_ipv4_mapped().is_none());
            if may_connect(v6.into(), &[]) {
                prop_assert_eq!(v6.segments()[0] >> 13, 1);
                prop_assert!(!v6.is_loopback() && !v6.is_unspecified() && !v6.is_multicast());
                prop_assert!(!v6.is_unique_local() && !v6.is_unicast_link_local());
            }
        }

        #[test]
        fn what_tunnels_v4_is_refused(bits: u32, low: u64) {
            let [a, b] = [(bits >> 16) as u16, bits as u16];
            prop_assert!(!is_global(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b).into()));
            prop_assert!(!is_global(Ipv6Addr::from(u128::from(low) | (0x2002_u128 << 112) | (u128::from(bits) << 80)).into()));
            prop_assert!(!is_global(Ipv6Addr::from(u128::from(low) | (0x2001_0000_u128 << 96)).into()));
            prop_assert!(!is_global(Ipv6Addr::new(0, 0, 0, 0, 0, 0, a, b).into()));
        }

        #[test]
        fn an_operator_network_opens_exactly_itself(bits: u32, prefix in 1u8..=32, other: u32) {
            let net = IpNet::new(Ipv4Addr::from(bits).into(), prefix).unwrap();
            let other = IpAddr::from(Ipv4Addr::from(other));
            let never = other.is_unspecified() || other.is_multicast() || other == ip("255.255.255.255");
            prop_assert_eq!(may_connect(other, &[net]), !never && (is_global(other) || net.contains(&other)));
        }
    }
}
