use super::*;
use crate::testing::{checked_vip, decided, desired, name};
use std::net::Ipv4Addr;
use tokio::task::JoinHandle;
use zk_schema::Cluster;

const SECOND: Duration = Duration::from_secs(1);

fn seeded(seed: u128) -> hmac::Key {
    key(Cluster { seed: seed.into(), ..Cluster::default() }.seed())
}

#[test]
fn what_is_written_is_read_by_those_who_have_the_seed_alone() {
    let ours = seeded(7);
    for kind in [Kind::Question, Kind::Answer((3, 9)), Kind::Answer((0, 0))] {
        let message = Message { number: 0x0102_0304_0506_0708, kind };
        let bytes = message.encode(&ours);
        assert_eq!(Message::decode(&bytes, &ours), Some(message));
        assert_eq!(Message::decode(&bytes, &seeded(8)), None);
        for at in 0..bytes.len() {
            let mut forged = bytes;
            forged[at] ^= 1;
            assert_eq!(Message::decode(&forged, &ours), None, "byte {at}");
        }
        assert_eq!(Message::decode(&bytes[1..], &ours), None);
        assert_eq!(Message::decode(&[&bytes[..], &[0]].concat(), &ours), None);
    }
    let absurd = Message { number: 1, kind: Kind::Answer((u64::MAX, 1)) }.encode(&ours);
    assert_eq!(Message::decode(&absurd, &ours), None, "an order that nobody can come to");
}

#[test]
fn at_least_half_of_those_that_answer_must_be_ahead() {
    let start = Instant::now();
    let overtaken = |orders: &[Order]| {
        let mut opinion = Opinion::default();
        for (at, order) in orders.iter().enumerate() {
            opinion.hear(name(&format!("lb-{at}")), *order, start);
        }
        assert_eq!(opinion.overtaken((2, 8), start + FRESH), None, "what was heard long ago");
        opinion.overtaken((2, 8), start + SECOND).map(|(found, _)| (found.ahead, found.answered))
    };
    let (old, same, new) = ((1, 99), (2, 8), (2, 9));
    assert_eq!(overtaken(&[]), None);
    assert_eq!(overtaken(&[same, old]), None);
    assert_eq!(overtaken(&[new]), Some((1, 1)));
    assert_eq!(overtaken(&[new, same]), None, "two of three would withdraw");
    assert_eq!(overtaken(&[new, same, (3, 1)]), Some((2, 3)));
    assert_eq!(overtaken(&[new, new, old, same]), None);
}

#[test]
fn of_nodes_that_hear_each_other_at_most_half_are_overtaken() {
    let start = Instant::now();
    for orders in [vec![1, 2], vec![1, 1, 2], vec![1, 2, 2], vec![1, 2, 3, 4, 5], vec![1, 1, 1, 2, 2, 2]] {
        let is_overtaken = |own: &usize| {
            let mut opinion = Opinion::default();
            for (at, epoch) in orders.iter().enumerate().filter(|(at, _)| at != own) {
                opinion.hear(name(&format!("lb-{at}")), (1, *epoch), start);
            }
            opinion.overtaken((1, orders[*own]), start).is_some()
        };
        let overtaken = (0..orders.len()).filter(is_overtaken).count();
        assert!(2 * overtaken <= orders.len(), "{orders:?}");
    }
}

/// Three nodes on loopback that know each other from a head of epoch 5.
struct Trio {
    links: Vec<watch::Sender<Link>>,
    reports: Vec<watch::Sender<Arc<Report>>>,
    overtaken: Vec<watch::Receiver<Option<Overtaken>>>,
    addresses: [Ipv4Addr; 3],
    port: u16,
    tasks: Vec<JoinHandle<Infallible>>,
}

impl Drop for Trio {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The order that a node has in force.
fn having(epoch: u64) -> Arc<Report> {
    Arc::new(Report { order: Some((1, epoch)), ..Report::default() })
}

impl Trio {
    fn new(withdraw_after: Option<Duration>) -> Self {
        let addresses = [1, 2, 3].map(|last| Ipv4Addr::new(127, 94, 42, last));
        // Whose port is free at one address may be in use at another.
        let port = loop {
            let one = std::net::UdpSocket::bind((addresses[0], 0)).unwrap();
            let port = one.local_addr().unwrap().port();
            if addresses[1..].iter().all(|address| std::net::UdpSocket::bind((*address, port)).is_ok()) {
                break port;
            }
        };
        let mut decided = decided(1, 5, &desired([("mqtt", checked_vip(&[("a", 100)]))]));
        decided.head.peers = addresses
            .iter()
            .enumerate()
            .map(|(at, address)| (name(&format!("lb-{at}")), [IpAddr::from(*address)].into()))
            .collect();
        let decided = Arc::new(decided);
        let mut trio =
            Self { links: vec![], reports: vec![], overtaken: vec![], addresses, port, tasks: vec![] };
        for (at, address) in addresses.into_iter().enumerate() {
            let peers = Peers {
                node: name(&format!("lb-{at}")),
                sources: Sources { v4: Some(address), v6: None },
                port,
                withdraw_after,
            };
            let link = Link { connected: true, since: Instant::now(), problem: None, sessions: 1 };
            let link = watch::Sender::new(link);
            let report = watch::Sender::new(having(5));
            let followed = Followed { decided: Some(Arc::clone(&decided)), ..Followed::default() };
            let known = Known {
                followed: watch::Sender::new(followed).subscribe(),
                link: link.subscribe(),
                report: report.subscribe(),
            };
            let overtaken = watch::Sender::new(None);
            trio.overtaken.push(overtaken.subscribe());
            trio.tasks.push(tokio::spawn(peers.run(known, overtaken)));
            trio.links.push(link);
            trio.reports.push(report);
        }
        trio
    }

    fn cut_off(&self, node: usize) {
        // Long ago, so that nothing waits for it.
        let since = Instant::now().checked_sub(60 * SECOND).unwrap_or_else(Instant::now);
        self.links[node].send_modify(|link| (link.connected, link.since) = (false, since));
    }
}

#[test]
fn who_was_ahead_and_is_no_longer_counts_from_anew() {
    let start = Instant::now();
    let mut opinion = Opinion::default();
    opinion.hear(name("lb-1"), (2, 9), start);
    let since = |opinion: &mut Opinion, own, after| {
        opinion.overtaken(own, start + after).map(|(_, since)| since.duration_since(start))
    };
    assert_eq!(since(&mut opinion, (2, 8), SECOND), Some(SECOND));
    assert_eq!(since(&mut opinion, (2, 8), 2 * SECOND), Some(SECOND));
    assert_eq!(since(&mut opinion, (2, 9), 3 * SECOND), None, "caught up");
    assert_eq!(since(&mut opinion, (2, 8), 4 * SECOND), Some(4 * SECOND));
}

/// After an outage that lasted longer than a node waits, all come back, one of them last.
#[tokio::test]
async fn who_comes_back_a_little_later_than_the_others_is_not_overtaken() {
    let mut trio = Trio::new(Some(20 * SECOND));
    trio.cut_off(0);
    (1..3).for_each(|other| drop(trio.reports[other].send_replace(having(6))));
    tokio::time::sleep(4 * SECOND).await;
    trio.links[0].send_modify(|link| link.connected = true);
    trio.reports[0].send_replace(having(6));
    tokio::time::sleep(2 * SECOND).await;
    assert!(!trio.overtaken[0].has_changed().unwrap(), "{:?}", *trio.overtaken[0].borrow_and_update());
}

#[tokio::test]
async fn who_is_cut_off_alone_learns_that_the_others_went_on() {
    let mut trio = Trio::new(Some(3 * SECOND));
    trio.cut_off(0);
    trio.reports[1].send_replace(having(6));
    // Half of three is not reached by one; two of them have to answer before that can be seen.
    tokio::time::sleep(4 * SECOND).await;
    assert_eq!(*trio.overtaken[0].borrow(), None);
    trio.reports[2].send_replace(having(6));
    let found = trio.overtaken[0].wait_for(Option::is_some).await.unwrap().to_owned();
    assert_eq!(found, Some(Overtaken { ahead: 2, answered: 2 }));
    trio.links[0].send_modify(|link| link.connected = true);
    trio.overtaken[0].wait_for(Option::is_none).await.unwrap();
}

#[tokio::test]
async fn who_was_told_never_to_withdraw_does_not_and_answers_others() {
    let trio = Trio::new(None);
    trio.cut_off(0);
    (1..3).for_each(|other| drop(trio.reports[other].send_replace(having(6))));
    // One without the seed gets no answer; the answer to one with it is as long as the question.
    let asker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut answer = [0; 512];
    let question = |key| Message { number: 77, kind: Kind::Question }.encode(&key);
    let ours = seeded(u128::from_be_bytes(*b"drover-standalon"));
    let received = loop {
        for asked in [question(seeded(8)), question(ours.clone())] {
            asker.send_to(&asked, (trio.addresses[0], trio.port)).await.unwrap();
        }
        // Until its socket is open.
        tokio::select! {
            received = asker.recv_from(&mut answer) => if let Ok((length, _)) = received { break length },
            () = tokio::time::sleep(SECOND / 10) => {}
        }
    };
    assert_eq!(received, LENGTH);
    let told = Message::decode(&answer[..received], &ours);
    assert_eq!(told, Some(Message { number: 77, kind: Kind::Answer((1, 5)) }));
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(*trio.overtaken[0].borrow(), None);
}
