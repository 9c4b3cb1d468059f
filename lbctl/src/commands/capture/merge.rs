//! Several nodes' streams as one.

use pcapng::{Block, Error, Interface, Packet, Parser};

/// Merges streams of pcapng: one section, with an interface for each stream that has begun.
pub(super) struct Merge {
    streams: Vec<Stream>,
    interfaces: u32,
    packets: u64,
}

struct Stream {
    parser: Parser,
    /// The name of the stream, whatever it says of itself.
    name: Option<String>,
    /// Its interface in what is written.
    interface: Option<u32>,
    packets: u64,
}

impl Merge {
    /// Streams of these names; one without is called what it calls itself.
    pub(super) fn new(names: impl Iterator<Item = Option<String>>) -> Self {
        let stream = |name| Stream { parser: Parser::new(), name, interface: None, packets: 0 };
        Self { streams: names.map(stream).collect(), interfaces: 0, packets: 0 }
    }

    /// The beginning of the merged stream.
    pub(super) fn begin(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        pcapng::emit(&Block::Section, &mut bytes);
        bytes
    }

    /// Takes a piece of a stream, and gives what is to be written for it; no more than `limit` packets in all.
    ///
    /// # Errors
    /// If it is not what a node sends; nothing more is to be taken of that stream.
    pub(super) fn take(&mut self, stream: usize, piece: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let stream = &mut self.streams[stream];
        stream.parser.push(piece);
        while let Some(block) = stream.parser.next_block()? {
            match block {
                Block::Section => {}
                Block::Interface(interface) => {
                    if stream.interface.is_some() {
                        return Err(Error::Damaged("a second interface"));
                    }
                    let name = stream.name.get_or_insert(interface.name).clone();
                    pcapng::emit(&Block::Interface(Interface { name, ..interface }), &mut out);
                    stream.interface = Some(self.interfaces);
                    self.interfaces += 1;
                }
                Block::Packet(packet) => {
                    let Some(interface) = stream.interface else {
                        return Err(Error::Damaged("a packet before its interface"));
                    };
                    if self.packets < limit {
                        pcapng::emit(&Block::Packet(Packet { interface, ..packet }), &mut out);
                        stream.packets += 1;
                        self.packets += 1;
                    }
                }
            }
        }
        Ok(out)
    }

    /// Packets that were written.
    pub(super) fn packets(&self) -> u64 {
        self.packets
    }

    /// Packets of one stream that were written.
    pub(super) fn packets_of(&self, stream: usize) -> u64 {
        self.streams[stream].packets
    }

    /// Returns the name of a stream, if it is known by now.
    pub(super) fn name(&self, stream: usize) -> Option<String> {
        self.streams[stream].name.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str, packets: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let interface = Interface { name: name.into(), description: "VIP mqtt".into(), snap_length: 256 };
        pcapng::emit(&Block::Section, &mut bytes);
        pcapng::emit(&Block::Interface(interface), &mut bytes);
        for comment in packets {
            let packet =
                Packet { time: 7, length: 60, data: vec![1; 60], comment: (*comment).into(), interface: 0 };
            pcapng::emit(&Block::Packet(packet), &mut bytes);
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Vec<(String, String)> {
        let mut parser = Parser::new();
        parser.push(bytes);
        let (mut names, mut packets) = (Vec::new(), Vec::new());
        while let Some(block) = parser.next_block().unwrap() {
            match block {
                Block::Section => {}
                Block::Interface(interface) => names.push(interface.name),
                Block::Packet(packet) => {
                    let name: &String = &names[usize::try_from(packet.interface).unwrap()];
                    packets.push((name.clone(), packet.comment));
                }
            }
        }
        packets
    }

    fn pair(node: &str, real: &str) -> (String, String) {
        (node.to_owned(), real.to_owned())
    }

    #[test]
    fn packets_of_several_streams_keep_their_node_and_their_comment() {
        let mut merge = Merge::new([None, Some("lb-2".to_owned())].into_iter());
        let mut out = merge.begin();
        let (one, two) = (stream("lb-1", &["real=a", "real=b"]), stream("eth0", &["real=c", "real=d"]));
        // In pieces that begin and end anywhere, the second stream first.
        for (first, second) in two.chunks(33).zip(one.chunks(33)) {
            out.extend(merge.take(1, first, 3).unwrap());
            out.extend(merge.take(0, second, 3).unwrap());
        }
        let mut packets = read(&out);
        packets.sort();
        assert_eq!(packets, [pair("lb-1", "real=a"), pair("lb-2", "real=c"), pair("lb-2", "real=d")]);
        assert_eq!((merge.packets(), merge.packets_of(0), merge.packets_of(1)), (3, 1, 2));
        assert_eq!(merge.name(0).as_deref(), Some("lb-1"));
    }

    #[test]
    fn a_stream_that_is_none_spoils_no_other() {
        let mut merge = Merge::new([None, None].into_iter());
        let mut out = merge.begin();
        assert!(merge.take(0, b"<html>\n this is no capture", 10).is_err());
        out.extend(merge.take(1, &stream("lb-2", &["real=a"]), 10).unwrap());
        assert_eq!(read(&out), [pair("lb-2", "real=a")]);
    }
}
