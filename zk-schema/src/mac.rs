//! MAC addresses.

use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// An Ethernet address (EUI-48), written as `02:00:5e:10:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Returns whether one interface can have it: not a group's (IEEE 802-2014, section 8.2.2), and not all zeros.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

/// Not six pairs of hexadecimal digits with colons between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address, such as 02:00:5e:10:00:01")]
pub struct MacError;

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut pairs = text.split(':');
        let mut octets = [0; 6];
        for octet in &mut octets {
            let pair =
                pairs.next().filter(|pair| pair.len() == 2 && !pair.starts_with('+')).ok_or(MacError)?;
            *octet = u8::from_str_radix(pair, 16).map_err(|_| MacError)?;
        }
        if pairs.next().is_some() { Err(MacError) } else { Ok(Self(octets)) }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_read_back_as_written_and_nothing_else_is_one() {
        let mac: MacAddress = "02:00:5E:10:00:ff".parse().unwrap();
        assert_eq!((mac.0, mac.to_string().as_str()), ([2, 0, 0x5e, 0x10, 0, 0xff], "02:00:5e:10:00:ff"));
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:00",
            "2:0:5e:10:0:ff",
            "02-00-5e-10-00-ff",
            "+2:00:5e:10:00:ff",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacError), "{text}");
        }
    }

    #[test]
    fn groups_and_nobody_are_no_unicast_addresses() {
        let is_unicast = |text: &str| text.parse::<MacAddress>().unwrap().is_unicast();
        assert!(is_unicast("00:00:5e:00:01:07"));
        for text in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01", "00:00:00:00:00:00"] {
            assert!(!is_unicast(text), "{text}");
        }
    }
}
