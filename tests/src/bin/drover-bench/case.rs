//! What is measured.

use std::fmt::Write as _;

use zk_schema::{Encapsulation, Protocol};

/// Version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V4,
    V6,
}

/// Many VIPs, where the case has them.
pub(crate) const MANY_VIPS: u16 = 500;

/// What the data plane is told before a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scenario {
    /// VIPs, all alike but for their addresses.
    pub(crate) vips: u16,
    pub(crate) version: Version,
    pub(crate) real_version: Version,
    pub(crate) udp: bool,
    pub(crate) wrap: Wrap,
    pub(crate) limits: Limited,
}

/// What new connections are limited by; so high that none is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Limited {
    Nothing,
    Vip,
    VipAndPrefix,
}

/// [`Encapsulation`], in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrap {
    Ipip,
    Gue,
    None,
}

impl Scenario {
    pub(crate) fn protocol(self) -> Protocol {
        if self.udp { Protocol::Udp } else { Protocol::Tcp }
    }

    pub(crate) fn encapsulation(self) -> Encapsulation {
        match self.wrap {
            Wrap::Ipip => Encapsulation::Ipip,
            Wrap::Gue => Encapsulation::Gue,
            Wrap::None => Encapsulation::L2,
        }
    }
}

/// Packets of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// As `DESIGN.md` names cases: `<tcp4|tcp6|udp4|udp6>/<ipip|gue|none>/<flows=N|syn>`, `pass4`, `pass6`, and what
    /// is different from the usual behind it.
    pub(crate) name: String,
    /// Position in the report.
    pub(crate) place: usize,
    pub(crate) scenario: Scenario,
    /// Flows that take turns.
    pub(crate) flows: u64,
    /// Destination addresses that take turns.
    pub(crate) destinations: u16,
    /// Every packet opens a connection.
    pub(crate) syn: bool,
    /// Not for a VIP.
    pub(crate) pass: bool,
    /// Net nanoseconds per packet that are aimed at.
    pub(crate) target: Option<u32>,
}

/// More flows than any run has packets: each is a new one.
const ENDLESS: u64 = u64::MAX;

impl Case {
    /// All cases, in the order in which they are reported.
    pub(crate) fn all(quick: bool) -> Vec<Case> {
        let mut cases = Cases(Vec::new());
        let flows: &[u64] = if quick { &[1, 100_000] } else { &[1, 1_000, 100_000, 1_000_000] };
        for udp in [false, true] {
            for version in [Version::V4, Version::V6] {
                for wrap in [Wrap::Ipip, Wrap::Gue, Wrap::None] {
                    let scenario = Scenario {
                        vips: 1,
                        version,
                        real_version: version,
                        udp,
                        wrap,
                        limits: Limited::VipAndPrefix,
                    };
                    if quick && (udp || wrap == Wrap::None) {
                        continue;
                    }
                    for &flows in flows {
                        cases.add(scenario, flows, |_| ());
                    }
                    if !udp {
                        cases.add_syn(scenario, |_| ());
                    }
                }
            }
        }
        let usual = |version, wrap| Scenario {
            vips: 1,
            version,
            real_version: version,
            udp: false,
            wrap,
            limits: Limited::VipAndPrefix,
        };
        for version in [Version::V4, Version::V6] {
            cases.add_pass(usual(version, Wrap::Ipip), 1);
        }
        if quick {
            return cases.0;
        }
        for version in [Version::V4, Version::V6] {
            cases.add_pass(usual(version, Wrap::Ipip), u16::MAX);
        }
        for (version, real_version) in [(Version::V4, Version::V6), (Version::V6, Version::V4)] {
            for wrap in [Wrap::Ipip, Wrap::Gue] {
                cases.add(Scenario { real_version, ..usual(version, wrap) }, 100_000, |_| ());
            }
        }
        for version in [Version::V4, Version::V6] {
            for limits in [Limited::Vip, Limited::Nothing] {
                let less = Scenario { limits, ..usual(version, Wrap::Ipip) };
                cases.add(less, 100_000, |_| ());
                cases.add_syn(less, |_| ());
            }
        }
        for version in [Version::V4, Version::V6] {
            let many = Scenario { vips: MANY_VIPS, ..usual(version, Wrap::Ipip) };
            for flows in [1, 100_000] {
                cases.add(many, flows, |_| ());
            }
            cases.add_syn(many, |_| ());
            cases.add_pass(many, 1);
            // As many tables in use at once do not fit any cache: not what the target speaks of.
            cases.add(many, 1_000_000, Case::over_all_vips);
            cases.add_syn(many, Case::over_all_vips);
        }
        cases.0
    }

    /// Spreads the packets over all VIPs.
    fn over_all_vips(&mut self) {
        self.destinations = self.scenario.vips;
        self.target = None;
        self.name.push_str("/spread");
    }
}

struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, scenario: Scenario, flows: u64, change: impl FnOnce(&mut Case)) {
        self.push(scenario, &format!("flows={flows}"), flows, false, change);
    }

    fn add_syn(&mut self, scenario: Scenario, change: impl FnOnce(&mut Case)) {
        self.push(scenario, "syn", ENDLESS, true, change);
    }

    fn push(
        &mut self,
        scenario: Scenario,
        traffic: &str,
        flows: u64,
        syn: bool,
        change: impl FnOnce(&mut Case),
    ) {
        let protocol = if scenario.udp { "udp" } else { "tcp" };
        let wrap = match scenario.wrap {
            Wrap::Ipip => "ipip",
            Wrap::Gue => "gue",
            Wrap::None => "none",
        };
        let name = format!("{protocol}{}/{wrap}/{traffic}{}", number(scenario.version), suffix(scenario));
        // Of a pair of versions the dearer decides.
        let v6 = scenario.version.max(scenario.real_version) == Version::V6;
        let target = Some(if v6 || scenario.wrap == Wrap::Gue { 60 } else { 50 });
        let place = self.0.len();
        let mut case = Case { name, place, scenario, flows, destinations: 1, syn, pass: false, target };
        change(&mut case);
        self.0.push(case);
    }

    fn add_pass(&mut self, scenario: Scenario, destinations: u16) {
        let mut name = format!("pass{}", number(scenario.version));
        if destinations > 1 {
            let _ = write!(name, "/destinations={destinations}");
        }
        name.push_str(&suffix(scenario));
        let place = self.0.len();
        self.0.push(Case {
            name,
            place,
            scenario,
            flows: 1,
            destinations,
            syn: false,
            pass: true,
            target: Some(15),
        });
    }
}

/// What is different from the usual: one VIP, limits, reals of the VIP's address family.
fn suffix(scenario: Scenario) -> String {
    let mut suffix = String::new();
    if scenario.vips > 1 {
        let _ = write!(suffix, "/vips={}", scenario.vips);
    }
    if scenario.real_version != scenario.version {
        let _ = write!(suffix, "/real=v{}", number(scenario.real_version));
    }
    suffix.push_str(match scenario.limits {
        Limited::VipAndPrefix => "",
        Limited::Vip => "/limits=vip",
        Limited::Nothing => "/limits=off",
    });
    suffix
}

/// 4 or 6.
pub(crate) fn number(version: Version) -> u32 {
    match version {
        Version::V4 => 4,
        Version::V6 => 6,
    }
}
