//! Waiting with a limit, and with a message that says for what.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Asks `ready` until it answers `Some`, and returns that.
///
/// # Errors
///
/// When `limit` has passed (the message names `what`), when `ready` fails, and when the run is interrupted.
pub fn wait_until<T>(
    what: impl Display,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    wait_undisturbed(what, limit, || match ready()? {
        None => interrupt::check().map(|()| None),
        done => Ok(done),
    })
}

/// As [`wait_until`], but goes on when the run is interrupted: for what clean-up needs.
pub(crate) fn wait_undisturbed<T>(
    what: impl Display,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        let now = Instant::now();
        if now >= deadline {
            bail!("waited {limit:?} in vain for {what}");
        }
        sleep(pause.min(deadline - now));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_in_vain_names_what_was_awaited() {
        let error = wait_until("the moon", Duration::from_millis(5), || Ok(None::<()>)).unwrap_err();
        assert!(error.to_string().contains("the moon"), "{error}");
    }

    #[test]
    fn a_condition_that_comes_true_ends_the_wait_with_its_value() {
        let mut asked = 0;
        let value = wait_until("the third question", Duration::from_secs(10), || {
            asked += 1;
            Ok((asked == 3).then_some("yes"))
        });
        assert_eq!(value.unwrap(), "yes");
    }
}
