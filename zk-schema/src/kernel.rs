//! The kernels that nodes run on: one rule for the daemon, which refuses older ones, and for `lbctl doctor`.

/// The oldest Linux that a node runs on, as major and minor number.
///
/// The program that wraps probes is on the interface's egress by a tcx link: these came with 6.6, and only a link can be
/// pinned, so that it outlives the daemon.
pub const OLDEST_KERNEL: (u32, u32) = (6, 6);

/// Major and minor number of a release such as `6.6.0-13-amd64`; `None` for what does not begin like one.
#[must_use]
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_two_numbers_that_count() {
        assert_eq!(kernel_version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("5.10"), Some((5, 10)));
        assert_eq!(kernel_version("6.12-rc1"), Some((6, 12)));
        assert_eq!(kernel_version("odd"), None);
    }
}
