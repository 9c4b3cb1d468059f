//! An address prefix in CIDR notation.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An IPv4 or IPv6 prefix (RFC 4632, RFC 4291 section 2.3). A single address is the prefix of full
/// length; no bits are set beyond the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The first address of the prefix.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Length in bits: 0..=32 for IPv4, 0..=128 for IPv6.
    pub fn length(self) -> u8 {
        self.length
    }
}

/// A text is no prefix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PrefixError {
    /// The part before the slash is no address.
    #[error("{0:?} is not an IPv4 or IPv6 address; write 10.0.0.7, 10.0.0.0/24 or 2001:db8::/64")]
    Address(String),
    /// The part after the slash is no length for the address's family.
    #[error("/{length} is not a prefix length: 0 to {max} fit this address")]
    Length {
        /// The text after the slash.
        length: String,
        /// The family's number of bits.
        max: u8,
    },
    /// Bits are set beyond the length.
    #[error("the address has bits set beyond /{}: write {} for the prefix, or the address alone", .0.length, .0)]
    HostBits(Prefix),
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| PrefixError::Address(address.into()))?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => max,
            Some(length) => match length.parse() {
                Ok(bits) if bits <= max => bits,
                _ => return Err(PrefixError::Length { length: length.into(), max }),
            },
        };
        let prefix = Self { address: mask(address, length), length };
        if prefix.address == address { Ok(prefix) } else { Err(PrefixError::HostBits(prefix)) }
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Clears the bits beyond `length`, which is at most the family's number of bits.
fn mask(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_alone_is_a_prefix_of_full_length() {
        assert_eq!("10.0.0.7".parse::<Prefix>().unwrap().length(), 32);
        assert_eq!("2001:db8::7".parse::<Prefix>().unwrap().length(), 128);
    }

    #[test]
    fn errors_say_what_to_write_instead() {
        let error = |text: &str| text.parse::<Prefix>().unwrap_err().to_string();
        assert!(error("10.0.0.7/24").contains("write 10.0.0.0/24"));
        assert!(error("10.0.0.0/33").contains("0 to 32"));
        assert!(error("2001:db8::/129").contains("0 to 128"));
        assert!(error("10.0.0.0/").contains("0 to 32"));
        assert!(error("node1").contains("node1"));
    }

    proptest! {
        #[test]
        fn a_prefix_survives_display_and_parse(address: IpAddr, length in 0u8..=128) {
            let length = if address.is_ipv4() { length % 33 } else { length };
            let prefix = Prefix { address: mask(address, length), length };
            prop_assert_eq!(prefix.to_string().parse::<Prefix>(), Ok(prefix));
        }

        #[test]
        fn arbitrary_text_never_panics(text: String) {
            let _ = text.parse::<Prefix>();
        }
    }
}
