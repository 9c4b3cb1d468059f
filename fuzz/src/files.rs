//! Configuration files: reading ends, in proportionate memory; what was read is written, and read again as the same;
//! what is refused is told by line.

use crate::memory::within;
use zk_schema::{ClusterFile, FileErrors, NodeFile, RealFile};

/// Reads a text as each kind of file.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let limit = (256 << 10) + text.len() * 2048;
    let lines = text.lines().count() + 1;
    let told = |errors: FileErrors| {
        assert!(!errors.problems.is_empty());
        for problem in &errors.problems {
            assert!((1..=lines).contains(&problem.line) && problem.column >= 1, "{problem:?} in {text:?}");
        }
        assert!(!errors.to_string().is_empty());
    };
    match within(limit, || ClusterFile::parse(text, "file")) {
        Ok(file) => {
            file.validate().unwrap();
            assert_eq!(ClusterFile::parse(&file.to_toml().unwrap(), "again").unwrap(), file);
        }
        Err(errors) => told(errors),
    }
    match within(limit, || NodeFile::parse(text, "file")) {
        Ok(file) => {
            assert!(NodeFile::is_meant_by(text));
            file.validate().unwrap();
            assert_eq!(NodeFile::parse(&file.to_toml().unwrap(), "again").unwrap(), file);
        }
        Err(errors) => told(errors),
    }
    match within(limit, || RealFile::parse(text, "file")) {
        Ok(file) => file.validate().unwrap(),
        Err(errors) => told(errors),
    }
}

/// The files of the documentation, and some with a bit of everything.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let documented = [include_str!("../../docs/cluster-file.md"), include_str!("../../docs/node-file.md")];
    let blocks = documented.iter().flat_map(|text| text.split("```toml\n").skip(1));
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    let own = [
        "[zookeeper]\nservers = \"zk-1:2181,[2001:db8::1]:2181/site\"\ncredentials_file = \"/c\"\nauth = \"sasl\"\nacl = \"creator\"\ntls_ca = \"/a\"\n",
        "[node]\nname = \"n\"\ninterface = \"e\"\n[node.capacity]\nvips = 9\n[vips.a]\naddress = \"::1\"\nport = 0\nprotocol = \"udp\"\n[vips.a.reals.b]\naddress = \"fd00::1\"\n",
        "a = 1979-05-27T07:32:00Z\nb = [1, 2.5, inf]\n[[c]]\n\"d.e\" = '''x'''\nf.g = {}\n",
    ];
    blocks.chain(own).map(|text| text.as_bytes().to_vec()).collect()
}
