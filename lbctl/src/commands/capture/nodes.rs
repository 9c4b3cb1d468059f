//! The nodes that are asked, and their addresses.

use super::Options;
use crate::context::Context;
use crate::host::Here;
use crate::tree::Tree;
use anyhow::{Result, bail};
use std::net::{IpAddr, SocketAddr};
use zk_schema::NodeName;
use zk_schema::tree::Member;

/// A node that is asked.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its name in the tree; one that is asked by address tells itself.
    pub(super) name: Option<String>,
    /// The address of its admin pages.
    pub(super) admin: SocketAddr,
    /// The reason why it cannot be asked.
    pub(super) problem: Option<String>,
}

/// The nodes that the options mean.
pub(super) async fn places(options: &Options, context: &Context) -> Result<Vec<Place>> {
    if !options.admin.is_empty() {
        let place = |admin: &SocketAddr| Place { name: None, admin: *admin, problem: None };
        return Ok(options.admin.iter().map(place).collect());
    }
    let tree = context.in_session(async |session| Ok(Tree::read(session).await?)).await?;
    if !tree.vips.contains_key(&options.vip) && !tree.assignments.contains_key(&options.vip) {
        let known: Vec<&str> = tree.vips.keys().map(|name| name.as_str()).collect();
        bail!("there is no VIP {}: there are {}", options.vip, list(&known));
    }
    let known: Vec<&str> = tree.nodes.keys().map(NodeName::as_str).collect();
    let wanted =
        if options.node.is_empty() { tree.nodes.keys().cloned().collect() } else { options.node.clone() };
    let here = Here::look();
    let mut places = Vec::new();
    let mut unreachable = Vec::new();
    for name in wanted {
        let Some(member) = tree.nodes.get(&name).and_then(|found| found.ok()) else {
            bail!("there is no node {name}: there are {}", list(&known));
        };
        match reachable(member, &here) {
            Some(admin) => places.push(Place { name: Some(name.to_string()), admin, problem: None }),
            None => unreachable.push(format!(
                "{name} listens on {} only: run lbctl on its host, or name the end of a tunnel by --admin",
                member.admin
            )),
        }
    }
    // Half a cluster's packets would pass for all of them.
    if !unreachable.is_empty() {
        let hint = match places.as_slice() {
            [] => String::new(),
            some => {
                let names: Vec<String> = some.iter().filter_map(|place| place.name.clone()).collect();
                format!("\nfrom here, these can be asked: --node {}", names.join(" --node "))
            }
        };
        bail!("not all nodes can be asked from here:\n  {}{hint}", unreachable.join("\n  "));
    }
    if places.is_empty() {
        bail!("there are no nodes in the tree");
    }
    Ok(places)
}

/// Returns the address at which a node can be asked from here, if it can be.
fn reachable(member: &Member, here: &Here) -> Option<SocketAddr> {
    let here = here.is(&member.boot);
    let ip = match member.admin.ip() {
        ip if ip.is_unspecified() && here => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V4(ip) if ip.is_unspecified() => member.source_v4?.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            member.source_v4.map(IpAddr::from).or(member.source_v6.map(IpAddr::from))?
        }
        ip if ip.is_loopback() && !here => return None,
        ip => ip,
    };
    Some(SocketAddr::new(ip, member.admin.port()))
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_address_is_of_use_on_the_nodes_own_host_alone() {
        let mut member = Member {
            instance: "1".into(),
            boot: "boot/1".into(),
            source_v4: Some([10, 0, 0, 1].into()),
            source_v6: None,
            admin: ([127, 0, 0, 1], 9940).into(),
            software: "0".into(),
            started: 0,
            extra: Default::default(),
        };
        assert_eq!(reachable(&member, &Here::from_iter(["boot/2"])), None);
        assert_eq!(reachable(&member, &Here::from_iter(["boot/2", "boot/1"])), Some(member.admin));
        member.admin = ([0, 0, 0, 0], 9940).into();
        assert_eq!(reachable(&member, &Here::default()), Some(([10, 0, 0, 1], 9940).into()));
        member.admin = ([10, 0, 0, 9], 9940).into();
        assert_eq!(reachable(&member, &Here::default()), Some(member.admin));
    }
}
