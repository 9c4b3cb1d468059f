//! Asks the kernel which interfaces take frames that XDP redirects to them, by the `netdev` family of generic netlink
//! (`Documentation/netlink/specs/netdev.yaml`, since Linux 6.3).
//!
//! A driver may lack `ndo_xdp_xmit`, or have it only while an XDP program of its own is loaded. Frames that are redirected
//! to such an interface vanish without a trace that a program could see.

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use std::collections::BTreeMap;
use std::io;

/// `GENL_ID_CTRL`: the family that knows the others' numbers.
const CONTROL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_NDO_XMIT`: frames may be redirected to the device.
const TAKES_REDIRECTS: u64 = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// Header of a netlink message (RFC 3549), and that of generic netlink behind it.
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
/// Answers come in datagrams of at most 32 KiB.
const DATAGRAM: usize = 64 * 1024;
/// More answers than that to one question are none.
const MOST_DATAGRAMS: usize = 10_000;

/// Returns for each interface of this network namespace, by index, whether it takes redirected frames.
///
/// # Errors
/// If the kernel cannot be asked, for instance since it has no such family.
pub(super) fn takes_redirects() -> io::Result<BTreeMap<u32, bool>> {
    // The kernel answers before `send` returns, and goes on with a long answer at each `recv`: nothing is waited for.
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.set_non_blocking(true)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let answer = ask(&socket, &message(CONTROL, NLM_F_REQUEST, CTRL_CMD_GETFAMILY, &name))?;
    let family = answer.iter().find_map(|answer| family(answer));
    let family = family.ok_or_else(|| io::Error::other("the kernel has no family netdev"))?;
    let devices = ask(&socket, &message(family, NLM_F_REQUEST | NLM_F_DUMP, NETDEV_CMD_DEV_GET, &[]))?;
    Ok(devices.iter().filter_map(|device| device_features(device)).collect())
}

/// Sends a question; returns the payloads of all answers, behind both headers.
fn ask(socket: &Socket, question: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let is_dump = question.get(6..8).is_some_and(|flags| flags != NLM_F_REQUEST.to_ne_bytes());
    socket.send(question, 0)?;
    let mut answers = Vec::new();
    let mut buffer = Vec::with_capacity(DATAGRAM);
    for _ in 0..MOST_DATAGRAMS {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let ended = take(&buffer, &mut answers)?;
        if ended || !is_dump {
            return Ok(answers);
        }
    }
    Err(io::Error::other("an answer without end"))
}

/// Takes the payloads out of a datagram; returns whether it ends the answer.
fn take(mut datagram: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while let Some(header) = datagram.first_chunk::<HEADER>() {
        let [a, b, c, d, kind @ ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let cut = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message that is cut off");
        let message = datagram.get(..length).filter(|message| message.len() >= HEADER).ok_or_else(cut)?;
        match u16::from_ne_bytes([kind[0], kind[1]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code =
                    message.get(HEADER..HEADER + 4).and_then(|code| code.try_into().ok()).ok_or_else(cut)?;
                return match i32::from_ne_bytes(code) {
                    0 => Ok(true),
                    code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                };
            }
            _ => answers.push(message.get(HEADER + GENERIC_HEADER..).ok_or_else(cut)?.to_vec()),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// A question of generic netlink.
fn message(family: u16, flags: u16, command: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + GENERIC_HEADER + payload.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    // Sequence and port number: there is one question at a time.
    message.extend_from_slice(&[0; 8]);
    // Command, version, reserved.
    message.extend_from_slice(&[command, 1, 0, 0]);
    message.extend_from_slice(payload);
    message
}

/// An attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of an attribute, if it is there.
fn value(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(&[a, b, c, d]) = attributes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(4..length)?;
        // The upper two bits are flags.
        if u16::from_ne_bytes([c, d]) & 0x3fff == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// The number in an answer of the control family.
fn family(answer: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(value(answer, CTRL_ATTR_FAMILY_ID)?.try_into().ok()?))
}

/// A device's index, and whether it takes redirected frames.
fn device_features(answer: &[u8]) -> Option<(u32, bool)> {
    let index = u32::from_ne_bytes(value(answer, NETDEV_A_DEV_IFINDEX)?.try_into().ok()?);
    let features = u64::from_ne_bytes(value(answer, NETDEV_A_DEV_XDP_FEATURES)?.try_into().ok()?);
    Some((index, features & TAKES_REDIRECTS != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(index: u32, features: u64) -> Vec<u8> {
        let attributes = [
            attribute(NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes()),
            attribute(NETDEV_A_DEV_XDP_FEATURES, &features.to_ne_bytes()),
        ];
        message(30, 0, NETDEV_CMD_DEV_GET, &attributes.concat())
    }

    #[test]
    fn devices_are_read_up_to_the_end_of_the_answer() {
        let mut answers = Vec::new();
        let datagram = [device(2, 0b111), device(3, 0b011)].concat();
        assert!(!take(&datagram, &mut answers).unwrap());
        assert!(take(&message(NLMSG_DONE, 0, 0, &[]), &mut answers).unwrap());
        let found: Vec<_> = answers.iter().filter_map(|answer| device_features(answer)).collect();
        assert_eq!(found, [(2, true), (3, false)]);
    }

    #[test]
    fn a_refusal_is_an_error() {
        let mut refusal = message(NLMSG_ERROR, 0, 0, &[]);
        refusal[HEADER..HEADER + 4].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        let error = take(&refusal, &mut Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn the_familys_number_is_read_whatever_stands_before_it() {
        let attributes =
            [attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0"), attribute(CTRL_ATTR_FAMILY_ID, &[31, 0])];
        assert_eq!(family(&attributes.concat()), Some(31));
        assert_eq!(family(&[]), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut answers = Vec::new();
            let _ = take(&bytes, &mut answers);
            for answer in answers.iter().chain([&bytes]) {
                let _ = (family(answer), device_features(answer));
            }
        }
    }
}
