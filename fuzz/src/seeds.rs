//! Seeds, with which fuzzing begins. `cargo xtask fuzz --seeds` writes those of all targets.

use std::path::PathBuf;

/// The variable that names the folder into which a target is to write its seeds, instead of fuzzing.
const FOLDER: &str = "DROVER_FUZZ_SEEDS";

/// Writes the seeds and ends the process, if that is what it was started for.
///
/// # Panics
/// If they cannot be written.
pub fn write_if_asked(seeds: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    std::fs::create_dir_all(&folder).unwrap();
    for (number, seed) in seeds().iter().enumerate() {
        std::fs::write(folder.join(format!("{number:03}")), seed).unwrap();
    }
    #[expect(clippy::disallowed_methods, reason = "main is libFuzzer's, and nothing has been begun yet")]
    std::process::exit(0);
}

/// Inputs of a first byte that stands for the place of `kind` among `kinds`, and a text.
pub(crate) fn of_kind(kinds: &[&str], kind: &str, text: &[u8]) -> Vec<u8> {
    let place = kinds.iter().position(|known| *known == kind).unwrap();
    [&[u8::try_from(place).unwrap()], text].concat()
}
