//! Checks that the kernel's clock follows another.

use super::report::Finding;

/// `STA_UNSYNC` of `linux/timex.h`.
const UNSYNCHRONISED: i32 = 0x40;

/// The kernel's answer about its clock (adjtimex(2)).
pub(super) fn synchronised() -> Finding {
    const CHECK: &str = "clock.sync";
    // SAFETY: the structure is plain numbers, for which zeros are valid.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: with `modes` 0 the kernel only fills the structure, which is valid for the call.
    let told = unsafe { libc::adjtimex(&raw mut state) };
    if told < 0 {
        return Finding::skipped(CHECK, "the kernel does not say whether its clock is synchronised");
    }
    if state.status & UNSYNCHRONISED != 0 {
        return Finding::warning(
            CHECK,
            "nothing keeps this clock right",
            "run chrony or systemd-timesyncd here (in a virtual machine or a container: on its host)",
        );
    }
    Finding::ok(CHECK, format!("kept right to {} ms", state.maxerror / 1000))
}
