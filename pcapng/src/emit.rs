//! Blocks to bytes.

use crate::{
    BYTE_ORDER, Block, Interface, LINK_ETHERNET, MAX_DATA, MAX_TEXT, NANOSECONDS, Packet, UNKNOWN_LENGTH,
    VERSION, block, option,
};

/// Appends a block. Of data and texts that are too long only the beginning is written, and no control characters.
pub fn emit(content: &Block, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    let kind = match content {
        Block::Section => {
            section(&mut body);
            block::SECTION
        }
        Block::Interface(content) => {
            interface(content, &mut body);
            block::INTERFACE
        }
        Block::Packet(content) => {
            packet(content, &mut body);
            block::PACKET
        }
    };
    let length = u32::try_from(body.len() + 12).expect("data and texts are bounded");
    out.extend(kind.to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend(body);
    out.extend(length.to_le_bytes());
}

fn section(body: &mut Vec<u8>) {
    body.extend(BYTE_ORDER.to_le_bytes());
    body.extend(VERSION.0.to_le_bytes());
    body.extend(VERSION.1.to_le_bytes());
    body.extend(UNKNOWN_LENGTH.to_le_bytes());
}

fn interface(content: &Interface, body: &mut Vec<u8>) {
    body.extend(LINK_ETHERNET.to_le_bytes());
    body.extend([0; 2]);
    body.extend(content.snap_length.to_le_bytes());
    option_of(option::INTERFACE_NAME, text(&content.name).as_bytes(), body);
    option_of(option::INTERFACE_DESCRIPTION, text(&content.description).as_bytes(), body);
    option_of(option::INTERFACE_RESOLUTION, &[NANOSECONDS], body);
    option_of(option::END, &[], body);
}

fn packet(content: &Packet, body: &mut Vec<u8>) {
    let data = &content.data[..content.data.len().min(MAX_DATA)];
    let captured = u32::try_from(data.len()).expect("just bounded");
    let [high, low] = halves(content.time);
    for word in [content.interface, high, low, captured, content.length] {
        body.extend(word.to_le_bytes());
    }
    body.extend(data);
    pad(body);
    let comment = text(&content.comment);
    if !comment.is_empty() {
        option_of(option::COMMENT, comment.as_bytes(), body);
        option_of(option::END, &[], body);
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the two halves")]
fn halves(time: u64) -> [u32; 2] {
    [(time >> 32) as u32, time as u32]
}

fn option_of(code: u16, value: &[u8], body: &mut Vec<u8>) {
    body.extend(code.to_le_bytes());
    body.extend(u16::try_from(value.len()).expect("texts are bounded").to_le_bytes());
    body.extend(value);
    pad(body);
}

/// All that is in a body is a multiple of four bytes long.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

fn text(text: &str) -> String {
    let mut bytes = 0;
    let fits = |c: &char| {
        bytes += c.len_utf8();
        bytes <= MAX_TEXT
    };
    text.chars().filter(|c| !c.is_control()).take_while(fits).collect()
}
