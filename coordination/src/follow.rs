//! Following the head: what the leader decided, complete and consistent, or not at all.

use crate::pace::Spread;
use crate::{Error, Outcome, Session, State, Watch};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use zk_schema::VipName;
use zk_schema::tree::{Decided, Head, StateRecord as _, is_plausible, paths};

/// About the pause before an inconsistent read is repeated: its writer may be half-way.
const AGAIN: Duration = Duration::from_millis(50);
/// Pauses until that is reported.
const ATTEMPTS: u32 = 20;
/// Pause from then on: it is not half-way any more.
const LONGEST_AGAIN: Duration = Duration::from_millis(500);

/// The newest decision that was read, and what stands in the way of a newer one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Followed {
    /// The newest decision that is complete; `None` until there was one.
    pub decided: Option<Arc<Decided>>,
    /// The reason why the tree's content is not taken over, if it is not.
    pub problem: Option<String>,
    /// The tree's head has been read in this session: `decided` is what it holds unless there is a `problem`.
    pub current: bool,
    /// The (term, epoch) below which nothing is taken over while there is no decision: what a predecessor of this process
    /// left in force, though it is not known in full.
    pub floor: Option<(u64, u64)>,
}

impl Followed {
    /// The (term, epoch) of what is in force, as far as this node knows.
    #[must_use]
    pub fn order(&self) -> Option<(u64, u64)> {
        self.decided.as_ref().map(|decided| decided.head.order()).or(self.floor)
    }
}

/// Follows the head into `followed`, which starts from whatever it holds, until the session has expired. Nothing that is
/// not greater in (term, epoch) than what is there replaces it. Everything is read again after a lost connection and
/// about every `reread`.
pub async fn follow<S: Session>(session: &S, followed: &watch::Sender<Followed>, reread: Duration) {
    let mut state = session.state();
    let mut spread = Spread::of_session(session.id(), paths::ASSIGNMENTS);
    let mut attempts = 0;
    let again = |attempts| if attempts < ATTEMPTS { AGAIN } else { LONGEST_AGAIN };
    loop {
        if !State::wait_connected(&mut state).await {
            return;
        }
        let (known, floor) = {
            let followed = followed.borrow();
            (followed.decided.clone(), followed.floor)
        };
        let outcome = look(session, known.as_deref(), floor).await;
        let (found, watch) = match outcome {
            Ok(outcome) => outcome,
            Err(Error::Expired) => return,
            Err(error) => {
                attempts += 1;
                // What the store refuses is not half-way either.
                if attempts >= ATTEMPTS || error.is_of_one_znode() {
                    attempts = ATTEMPTS;
                    report(followed, Some(error.to_string()));
                }
                tokio::time::sleep(spread.around(again(attempts))).await;
                continue;
            }
        };
        let pause = match found {
            Found::Newer(decided) => {
                attempts = 0;
                followed.send_replace(Followed {
                    decided: Some(decided),
                    problem: None,
                    current: true,
                    floor,
                });
                spread.around(reread)
            }
            Found::Same => {
                attempts = 0;
                report(followed, None);
                spread.around(reread)
            }
            Found::Refused(problem) => {
                report(followed, Some(problem));
                spread.around(reread)
            }
            Found::Torn(problem) => {
                attempts += 1;
                if attempts >= ATTEMPTS {
                    report(followed, Some(problem));
                }
                spread.around(again(attempts))
            }
        };
        tokio::select! {
            biased;
            () = watch => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

enum Found {
    Newer(Arc<Decided>),
    Same,
    /// It stays wrong until somebody writes.
    Refused(String),
    /// It may be right in a moment.
    Torn(String),
}

async fn look<S: Session>(
    session: &S,
    known: Option<&Decided>,
    floor: Option<(u64, u64)>,
) -> Result<(Found, Watch), Error> {
    let (znode, watch) = session.watch(paths::ASSIGNMENTS).await?;
    let data = znode.map(|znode| znode.data).unwrap_or_default();
    if data.is_empty() {
        let found = match known {
            Some(_) => Found::Refused(format!("{}: empty; what is in force stays", paths::ASSIGNMENTS)),
            None => Found::Same,
        };
        return Ok((found, watch));
    }
    let head = match Head::parse(&data) {
        Ok(head) => head,
        Err(error) => {
            return Ok((Found::Refused(format!("{}: {error}", paths::ASSIGNMENTS)), watch));
        }
    };
    if !is_plausible(head.order()) {
        let problem = format!(
            "{}: (term, epoch) {:?} was made up: no leader comes that far; the next one writes it anew",
            paths::ASSIGNMENTS,
            head.order()
        );
        return Ok((Found::Refused(problem), watch));
    }
    if let Some(known) = known {
        if head == known.head {
            return Ok((Found::Same, watch));
        }
        if head.order() <= known.head.order() {
            let problem = format!(
                "{}: (term, epoch) {:?} is not greater than {:?}, which is in force and stays; the next leader goes on from it",
                paths::ASSIGNMENTS,
                head.order(),
                known.head.order()
            );
            return Ok((Found::Refused(problem), watch));
        }
    } else if let Some(floor) = floor.filter(|floor| head.order() < *floor) {
        let problem = format!(
            "{}: (term, epoch) {:?} is less than {floor:?}, which the tables in the kernel are from; they stay; the next leader goes on from it",
            paths::ASSIGNMENTS,
            head.order()
        );
        return Ok((Found::Refused(problem), watch));
    }
    let is_new = |name: &VipName| known.is_none_or(|known| known.head.vips.get(name) != head.vips.get(name));
    let names: Vec<VipName> = head.vips.keys().filter(|name| is_new(name)).cloned().collect();
    let paths: Vec<String> = names.iter().map(paths::assignment).collect();
    let mut read = BTreeMap::<VipName, Outcome>::new();
    for (names, paths) in names.chunks(READ_AT_ONCE).zip(paths.chunks(READ_AT_ONCE)) {
        let outcomes = session.read_each(paths).await?;
        read.extend(names.iter().cloned().zip(outcomes));
    }
    // The leader, which has what it holds, writes it anew.
    let unreadable = read.iter().find_map(|(name, outcome)| Some((name, outcome.as_ref().err()?)));
    if let Some((name, error)) = unreadable {
        return Ok((Found::Torn(format!("{}: {}", paths::assignment(name), error.unreadable())), watch));
    }
    let bytes = |name: &VipName| read.remove(name)?.ok().flatten().map(|znode| znode.data);
    let found = match Decided::assemble(head, &data, bytes, known) {
        Ok(decided) => Found::Newer(Arc::new(decided)),
        Err(problem) => Found::Torn(problem),
    };
    Ok((found, watch))
}

/// Assignments that one answer may hold: digests make sure that those of several answers go together.
const READ_AT_ONCE: usize = 8;

fn report(followed: &watch::Sender<Followed>, problem: Option<String>) {
    followed.send_if_modified(|followed| {
        let current = problem.is_none() || followed.current;
        let differs = followed.problem != problem || followed.current != current;
        followed.problem = problem;
        followed.current = current;
        differs
    });
}
