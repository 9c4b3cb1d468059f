//! The network of the host that the agent runs on: its interfaces, its addresses, and VIPs on its loopback.

use anyhow::{Context as _, Result};
use host::netlink::{Link, Netlink, Xdp};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressScope, CacheInfo};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(crate) const LOOPBACK: &str = "lo";

/// `INFINITY_LIFE_TIME` of the kernel's `net/addrconf.h`.
const FOR_EVER: u32 = u32::MAX;

/// The network namespace that this process runs in.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    netlink: Netlink,
}

impl Network {
    pub(crate) fn new(netlink: Netlink) -> Self {
        Self { netlink }
    }

    pub(crate) async fn interface_index(&self, name: &str) -> Result<u32> {
        Ok(self.link(name).await?.index)
    }

    async fn link(&self, name: &str) -> Result<Link> {
        self.netlink.link(name).await?.with_context(|| {
            format!("no interface {name} here: `ip link` lists the interfaces that there are")
        })
    }

    /// The XDP program of an interface.
    pub(crate) async fn attached(&self, name: &str) -> Result<Option<Xdp>> {
        Ok(self.link(name).await?.xdp)
    }

    /// Every address of this host, on whatever interface, other than 127.0.0.0/8 and ::1.
    pub(crate) async fn addresses(&self) -> Result<BTreeSet<IpAddr>> {
        let own = self.netlink.addresses().await?.into_iter().map(|own| own.address);
        Ok(own.filter(|address| !address.is_loopback()).collect())
    }

    /// The addresses of the loopback interface.
    pub(crate) async fn loopback_addresses(&self) -> Result<BTreeSet<IpAddr>> {
        let index = self.interface_index(LOOPBACK).await?;
        let own = self.netlink.addresses().await?.into_iter().filter(|own| own.ifindex == index);
        Ok(own.map(|own| own.address).collect())
    }

    /// The addresses of an interface that others may know it by: no link-local, secondary, temporary or deprecated ones.
    pub(crate) async fn primary_addresses(&self, interface: &str) -> Result<BTreeSet<IpAddr>> {
        let index = self.interface_index(interface).await?;
        let own = self.netlink.addresses().await?.into_iter();
        let primary = own.filter(|own| own.ifindex == index && own.global && own.primary);
        Ok(primary.map(|own| own.address).collect())
    }

    /// Puts a VIP on the loopback in such a way that the host never chooses it by itself as the
    /// source of a connection that it opens: scope `host` for IPv4, deprecated for IPv6.
    pub(crate) async fn add_to_loopback(&self, vip: IpAddr) -> Result<()> {
        let index = self.interface_index(LOOPBACK).await?;
        let length = if vip.is_ipv4() { 32 } else { 128 };
        let mut request = self.netlink.handle().address().add(index, vip, length);
        let message = request.message_mut();
        if vip.is_ipv4() {
            message.header.scope = AddressScope::Host;
        } else {
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_preferred = 0;
            lifetime.ifa_valid = FOR_EVER;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            message.attributes.push(AddressAttribute::CacheInfo(lifetime));
        }
        request.execute().await.with_context(|| format!("cannot put {vip} on {LOOPBACK}"))
    }

    pub(crate) async fn remove_from_loopback(&self, vip: IpAddr) -> Result<()> {
        let index = self.interface_index(LOOPBACK).await?;
        for message in self.netlink.messages_of(index, vip).await? {
            let removed = self.netlink.handle().address().del(message).execute().await;
            removed.with_context(|| format!("cannot take {vip} off {LOOPBACK}"))?;
        }
        Ok(())
    }
}
