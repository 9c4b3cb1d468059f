//! Finding what is meant by a name, and saying what there is when it is not there.

use crate::tree::Tree;
use anyhow::{Result, anyhow, bail};
use std::fmt::Display;
use zk_schema::picture::{Found, VipFound};
use zk_schema::tree::{Target, paths};
use zk_schema::{NodeName, Real, Vip, VipName, nearest};

/// Names that a refusal lists at most.
const LISTED: usize = 12;

/// The cluster's VIP of this name.
///
/// # Errors
/// If there is none: with those that there are.
pub fn vip<'t>(tree: &'t Tree, name: &VipName) -> Result<&'t VipFound> {
    made(tree)?;
    let found = tree.vips.get(name).map(AsRef::as_ref);
    found.ok_or_else(|| anyhow!("{}", missing("VIP", name, tree.vips.keys())))
}

/// A VIP's record, which must be sound.
///
/// # Errors
/// If there is none, or it is broken.
pub fn sound_vip<'t>(tree: &'t Tree, name: &VipName) -> Result<&'t Vip> {
    sound(&vip(tree, name)?.vip, &paths::vip(name))
}

/// A real.
///
/// # Errors
/// If there is none: with those that there are.
pub fn real<'t>(tree: &'t Tree, target: &Target) -> Result<&'t Found<Real>> {
    let vip = vip(tree, &target.vip)?;
    let what = format!("real of {}", target.vip);
    vip.reals.get(&target.real).ok_or_else(|| anyhow!("{}", missing(&what, &target.real, vip.reals.keys())))
}

/// A real's record, which must be sound.
///
/// # Errors
/// If there is none, or it is broken.
pub fn sound_real<'t>(tree: &'t Tree, target: &Target) -> Result<&'t Real> {
    sound(real(tree, target)?, &paths::real(&target.vip, &target.real))
}

/// Checks that there was, or is, a node of this name.
///
/// # Errors
/// If there was none: with those that there are.
pub fn node(tree: &Tree, name: &NodeName) -> Result<()> {
    made(tree)?;
    if tree.nodes.contains_key(name) || tree.applied.contains_key(name) {
        return Ok(());
    }
    let mut known: Vec<&NodeName> = tree.nodes.keys().chain(tree.applied.keys()).collect();
    known.sort();
    known.dedup();
    bail!("{}", missing("node", name, known))
}

/// Checks that there is a cluster.
///
/// # Errors
/// If none was made.
pub fn made(tree: &Tree) -> Result<()> {
    if tree.cluster.is_none() {
        bail!("there is no cluster here: {} is missing; `lbctl init` makes one", paths::CLUSTER);
    }
    Ok(())
}

fn sound<'t, T>(found: &'t Found<T>, path: &str) -> Result<&'t T> {
    found.record.as_ref().map_err(|problem| {
        anyhow!("{path} is broken: {problem}. Fix it with `lbctl apply`, which replaces the whole record")
    })
}

/// That there is no such thing, what there is, and what may have been meant.
fn missing<N: Display>(what: &str, name: &dyn Display, known: impl IntoIterator<Item = N>) -> String {
    let known: Vec<String> = known.into_iter().map(|name| name.to_string()).collect();
    let names: Vec<&str> = known.iter().map(String::as_str).collect();
    let name = name.to_string();
    let mut text = format!("there is no {what} named {name}");
    if let Some(meant) = nearest(&name, &names) {
        text.push_str(&format!("; did you mean {meant}?"));
    }
    match names.len() {
        0 => text.push_str("; there is none at all"),
        1..=LISTED => text.push_str(&format!("; there are: {}", names.join(", "))),
        more => text.push_str(&format!("; there are {more}: {}, ...", names[..LISTED].join(", "))),
    }
    text
}

/// A real named as `VIP/REAL`, or as `VIP REAL` at the beginning of `words`; and the words that follow.
///
/// # Errors
/// If it is not.
pub fn target(words: &[String]) -> Result<(Target, &[String])> {
    let (text, rest) = match words {
        [first, rest @ ..] if first.contains('/') => (first.clone(), rest),
        [vip, real, rest @ ..] if !real.contains('=') => (format!("{vip}/{real}"), rest),
        _ => bail!("which real? Name it as VIP/REAL, e.g. mqtt/broker-1, or as VIP REAL"),
    };
    Ok((text.parse().map_err(|problem: String| anyhow!(problem))?, rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use crate::edit::testing::tree;

    #[test]
    fn a_name_that_is_not_there_is_answered_with_those_that_are() {
        let tree = tree(&["mqtt/broker-1", "mqtt/broker-2", "web/www-1"]);
        let error = vip(&tree, &"mqqt".parse().unwrap()).unwrap_err().to_string();
        assert_eq!(error, "there is no VIP named mqqt; did you mean mqtt?; there are: mqtt, web");
        let error = real(&tree, &"mqtt/brokre-1".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("no real of mqtt named brokre-1; did you mean broker-1?"), "{error}");
        assert!(real(&tree, &"web/www-1".parse().unwrap()).is_ok());
        let error = vip(&Tree::default(), &"mqtt".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("lbctl init"), "{error}");
    }

    #[test]
    fn a_real_is_named_in_one_word_or_in_two() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for text in ["mqtt/broker-1 weight=5", "mqtt broker-1 weight=5"] {
            let words = words(text);
            let (target, rest) = target(&words).unwrap();
            assert_eq!(
                (target.to_string(), rest),
                ("mqtt/broker-1".to_owned(), &["weight=5".to_owned()][..])
            );
        }
        for text in ["mqtt", "mqtt weight=5", "mqtt/B"] {
            assert!(target(&words(text)).is_err(), "{text}");
        }
    }
}
