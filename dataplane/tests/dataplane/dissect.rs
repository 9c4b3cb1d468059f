//! Frames as an independent parser sees them.

use serde_json::Value;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Returns the layers that scapy finds in each frame, as `dissect.py` puts them.
pub(crate) fn parse(frames: &[Vec<u8>]) -> Vec<Vec<Value>> {
    // The distribution's own interpreter: another one that a user has installed lacks the distribution's scapy.
    let mut python = Command::new("/usr/bin/python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dataplane/dissect.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("/usr/bin/python3, with python3-scapy");
    let mut input = python.stdin.take().unwrap();
    let lines: String = frames.iter().map(|frame| hex(frame) + "\n").collect();
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "dissect.py failed: is python3-scapy installed?");
    writer.join().unwrap().unwrap();
    let parsed: Vec<Vec<Value>> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(parsed.len(), frames.len());
    parsed
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks some fields of a layer.
#[track_caller]
pub(crate) fn expect(layer: &Value, fields: &Value) {
    for (name, value) in fields.as_object().unwrap() {
        assert_eq!(&layer[name], value, "{name} of {layer}");
    }
}
