//! Bytes to blocks.

use crate::{
    BYTE_ORDER, Block, Interface, LINK_ETHERNET, MAX_DATA, MAX_TEXT, NANOSECONDS, Packet, VERSION, block,
    option,
};

/// The longest block that is read, in bytes: a packet's, with room for options that are not known.
const MAX_BLOCK: usize = MAX_DATA + 4 * MAX_TEXT;
/// The most interfaces of a section.
const MAX_INTERFACES: u32 = 1024;

/// The difference between bytes and what [`emit`](crate::emit) writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another format, or another section.
    #[error("it does not begin as pcapng of version 1.0 in little-endian order")]
    NotASection,
    /// A block's length is impossible, or its two copies differ.
    #[error("a block of {0} bytes: no block has that length")]
    Length(u32),
    /// A block's content does not fit its kind.
    #[error("a damaged block: {0}")]
    Damaged(&'static str),
}

/// Reads blocks from bytes that come in pieces. Holds no more than one block and one piece. After an error it is of no
/// further use.
#[derive(Clone, Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    in_section: bool,
    interfaces: u32,
}

impl Parser {
    /// A parser that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// Returns whether all bytes that were taken have been returned as blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next block; `None` until more bytes are there. Blocks of other kinds are left out.
    ///
    /// # Errors
    /// If the bytes are not such blocks.
    pub fn next_block(&mut self) -> Result<Option<Block>, Error> {
        loop {
            let Some((kind, length)) = self.header()? else { return Ok(None) };
            if self.buffer.len() < length {
                return Ok(None);
            }
            let bytes: Vec<u8> = self.buffer.drain(..length).collect();
            if let Some(block) = self.block(kind, &bytes)? {
                return Ok(Some(block));
            }
        }
    }

    /// Kind and length of the block that is next, of which not all may be there.
    fn header(&self) -> Result<Option<(u32, usize)>, Error> {
        let mut bytes = Reader(&self.buffer);
        let (Ok(kind), Ok(told)) = (bytes.u32(), bytes.u32()) else { return Ok(None) };
        if (kind == block::SECTION) == self.in_section {
            return Err(Error::NotASection);
        }
        let length = usize::try_from(told).unwrap_or(usize::MAX);
        if !(12..=MAX_BLOCK).contains(&length) || !length.is_multiple_of(4) {
            return Err(Error::Length(told));
        }
        Ok(Some((kind, length)))
    }

    fn block(&mut self, kind: u32, bytes: &[u8]) -> Result<Option<Block>, Error> {
        let (begin, end) = (&bytes[4..8], &bytes[bytes.len() - 4..]);
        if begin != end {
            return Err(Error::Length(Reader(end).u32()?));
        }
        let body = Reader(&bytes[8..bytes.len() - 4]);
        match kind {
            block::SECTION => {
                section(body)?;
                self.in_section = true;
                Ok(Some(Block::Section))
            }
            block::INTERFACE => {
                self.interfaces += 1;
                if self.interfaces > MAX_INTERFACES {
                    return Err(Error::Damaged("too many interfaces"));
                }
                Ok(Some(Block::Interface(interface(body)?)))
            }
            block::PACKET => {
                let packet = packet(body)?;
                if packet.interface >= self.interfaces {
                    return Err(Error::Damaged("a packet of an interface that there is not"));
                }
                Ok(Some(Block::Packet(packet)))
            }
            _ => Ok(None),
        }
    }
}

fn section(mut body: Reader<'_>) -> Result<(), Error> {
    let order = body.u32()?;
    let version = (body.u16()?, body.u16()?);
    body.take(8)?;
    let is_ours = order == BYTE_ORDER && version == VERSION;
    if is_ours { Ok(()) } else { Err(Error::NotASection) }
}

fn interface(mut body: Reader<'_>) -> Result<Interface, Error> {
    let link = body.u16()?;
    body.take(2)?;
    let mut interface = Interface { snap_length: body.u32()?, ..Interface::default() };
    let mut resolution = None;
    body.options(|code, value| {
        match code {
            option::INTERFACE_NAME => interface.name = text(value)?,
            option::INTERFACE_DESCRIPTION => interface.description = text(value)?,
            option::INTERFACE_RESOLUTION => resolution = value.first().copied(),
            _ => {}
        }
        Ok(())
    })?;
    if link != LINK_ETHERNET || resolution != Some(NANOSECONDS) {
        return Err(Error::Damaged("an interface that is not Ethernet with times in nanoseconds"));
    }
    Ok(interface)
}

fn packet(mut body: Reader<'_>) -> Result<Packet, Error> {
    let interface = body.u32()?;
    let time = u64::from(body.u32()?) << 32 | u64::from(body.u32()?);
    let captured = usize::try_from(body.u32()?).unwrap_or(usize::MAX);
    let length = body.u32()?;
    if captured > MAX_DATA {
        return Err(Error::Damaged("a packet that is too long"));
    }
    let data = body.padded(captured)?.to_vec();
    let mut comment = String::new();
    body.options(|code, value| {
        if code == option::COMMENT {
            comment = text(value)?;
        }
        Ok(())
    })?;
    Ok(Packet { interface, time, length, data, comment })
}

/// Texts may end up on terminals.
fn text(bytes: &[u8]) -> Result<String, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::Damaged("a text that is not UTF-8"))?;
    if bytes.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return Err(Error::Damaged("a text that is too long or has control characters"));
    }
    Ok(text.to_owned())
}

/// The unread rest of some bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Error::Damaged("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// As `take`, and the filler up to a multiple of four with it.
    fn padded(&mut self, count: usize) -> Result<&'a [u8], Error> {
        Ok(&self.take(count.next_multiple_of(4))?[..count])
    }

    fn u16(&mut self) -> Result<u16, Error> {
        let bytes = self.take(2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, Error> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn options(&mut self, mut each: impl FnMut(u16, &[u8]) -> Result<(), Error>) -> Result<(), Error> {
        while !self.0.is_empty() {
            let (code, length) = (self.u16()?, self.u16()?);
            if code == option::END {
                return Ok(());
            }
            each(code, self.padded(length.into())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use crate::emit;
    use proptest::prelude::*;

    fn parse(bytes: &[u8], piece: usize) -> Result<Vec<Block>, Error> {
        let mut parser = Parser::new();
        let mut blocks = Vec::new();
        for piece in bytes.chunks(piece.max(1)) {
            parser.push(piece);
            while let Some(block) = parser.next_block()? {
                blocks.push(block);
            }
        }
        Ok(blocks)
    }

    fn bytes_of(blocks: &[Block]) -> Vec<u8> {
        let mut bytes = Vec::new();
        blocks.iter().for_each(|block| emit(block, &mut bytes));
        bytes
    }

    fn interface(name: &str) -> Block {
        Block::Interface(Interface { name: name.into(), description: "VIP mqtt".into(), snap_length: 256 })
    }

    prop_compose! {
        fn packets()(
            interface in 0..2u32,
            time: u64,
            length: u32,
            data in prop::collection::vec(any::<u8>(), 0..300),
            comment in "[ -~äß€]{0,40}",
        ) -> Block {
            Block::Packet(Packet { interface, time, length, data, comment })
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(packets in prop::collection::vec(packets(), 0..8), piece in 1..100usize) {
            let mut blocks = vec![Block::Section, interface("lb-1"), interface("ü")];
            blocks.extend(packets);
            prop_assert_eq!(parse(&bytes_of(&blocks), piece), Ok(blocks));
        }

        #[test]
        fn no_bytes_make_it_panic(noise in prop::collection::vec(any::<u8>(), 0..400), at in 0..200usize) {
            let _ = parse(&noise, 7);
            let packet = Packet { data: vec![1; 60], comment: "real=a".into(), ..Packet::default() };
            let mut bytes = bytes_of(&[Block::Section, interface("lb-1"), Block::Packet(packet)]);
            for (place, byte) in bytes.iter_mut().skip(at).zip(noise) {
                *place ^= byte;
            }
            let _ = parse(&bytes, 50);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let section = bytes_of(&[Block::Section]);
        assert_eq!(parse(b"\xd4\xc3\xb2\xa1\x02\x00\x04\x00", 8), Err(Error::NotASection));
        assert_eq!(parse(&[&section[..], &section[..]].concat(), 64), Err(Error::NotASection));
        let stray = bytes_of(&[Block::Section, Block::Packet(Packet::default())]);
        assert!(matches!(parse(&stray, 64), Err(Error::Damaged(_))));
        let mut huge = section.clone();
        huge.extend(6u32.to_le_bytes());
        huge.extend(u32::MAX.to_le_bytes());
        assert_eq!(parse(&huge, 64), Err(Error::Length(u32::MAX)));
        let mut hostile = bytes_of(&[Block::Section, interface("lb?1")]);
        let at = hostile.iter().position(|byte| *byte == b'?').unwrap();
        hostile[at] = 0x1b;
        assert!(matches!(parse(&hostile, 64), Err(Error::Damaged(_))));
    }

    #[test]
    fn long_texts_and_data_are_cut_and_control_characters_left_out() {
        let packet = Packet {
            data: vec![7; MAX_DATA + 1],
            comment: format!("\n{}", "x".repeat(MAX_TEXT + 1)),
            ..Packet::default()
        };
        let blocks = parse(&bytes_of(&[Block::Section, interface(""), Block::Packet(packet)]), 999).unwrap();
        let Some(Block::Packet(read)) = blocks.last() else { panic!("{blocks:?}") };
        assert_eq!((read.data.len(), read.comment.len()), (MAX_DATA, MAX_TEXT));
    }
}
