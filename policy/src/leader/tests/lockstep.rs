//! A leader that keeps what it worked out decides, at every step, what one decides that goes through everything anew.

use super::*;
use zk_schema::Protocol;
use zk_schema::testing::found;
use zk_schema::tree::Vote;

/// Numbers that look random and follow from a seed: SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).unwrap()
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())].clone()
    }

    fn often(&mut self) -> bool {
        self.roll(3) > 0
    }
}

const VIPS: [&str; 4] = ["v1", "v2", "v3", "v4"];
const REALS: [&str; 5] = ["a", "b", "c", "d", "e"];
const MORE_NODES: [&str; 7] = ["lb-1", "lb-2", "lb-3", "lb-4", "lb-5", "lb-6", "lb-7"];

/// Two leaders that are told the same, of which one forgets what it worked out before each step.
struct Pair {
    kept: Leader,
    anew: Leader,
    view: View,
    now: Duration,
    dice: Dice,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let vip = || checked_vip(&[("a", 100), ("b", 100), ("c", 100), ("d", 100)]);
        let state = desired([("v1", vip()), ("v2", vip()), ("v3", unchecked_vip(&[("a", 1), ("b", 2)]))]);
        let view = Case::new(&state).view;
        let leader = || Leader::new(1, SETTINGS, Published::default(), 0, Duration::ZERO);
        Self { kept: leader(), anew: leader(), view, now: Duration::ZERO, dice: Dice(seed) }
    }

    fn wish(&mut self) -> &mut VipFound {
        let vip = self.dice.one(&VIPS);
        let entry = self.view.vips.entry(name(vip)).or_insert_with(|| vip_found(checked_vip(&[])));
        Arc::make_mut(entry)
    }

    fn vote(&mut self) -> &mut Vote {
        let node = self.dice.one(&MORE_NODES);
        Arc::make_mut(self.view.votes.entry(name(node)).or_default())
    }

    fn target(&mut self) -> Target {
        Target { vip: name(self.dice.one(&VIPS)), real: name(self.dice.one(&REALS)) }
    }

    /// Changes something, anything.
    fn edit(&mut self) {
        let target = self.target();
        match self.dice.roll(20) {
            0..3 => {
                let number = u8::try_from(self.dice.roll(6)).unwrap();
                let mut real = Real::new([10, 0, 2, number].into());
                real.weight = self.dice.one(&[0, 50, 100, 100, 100]);
                let leaves = self.dice.roll(6) == 0;
                if leaves {
                    Registrant::take_leave(&mut real);
                }
                let mut real = if self.dice.roll(8) == 0 { broken("not JSON") } else { found(real) };
                Arc::make_mut(&mut real.znode).owner = leaves.then_some(1);
                self.wish().reals.insert(target.real, real);
            }
            3..5 => drop(self.wish().reals.remove(&target.real)),
            5 => drop(self.view.vips.remove(&target.vip)),
            6 => {
                let (address, threshold) = (self.dice.one(&[1, 2, 3, 4]), self.dice.one(&[0, 50, 100]));
                let mut vip = Vip::new([198, 51, 100, address].into(), 1883, Protocol::Tcp);
                vip.panic_threshold = threshold;
                vip.health = checked_vip(&[]).vip.health.filter(|_| self.dice.often());
                let vip = if self.dice.roll(8) == 0 { broken("not JSON") } else { found(vip) };
                self.wish().vip = vip;
            }
            7..10 => {
                let finding = Finding { since: 0, reason: self.dice.one(&["refused", "no answer"]).into() };
                drop(self.vote().down.insert(target, finding));
            }
            10..12 => self.vote().down.clear(),
            12 => drop(self.vote().unknown.insert(target)),
            13 => {
                let vote = self.vote();
                vote.unknown.clear();
                vote.suspect = !vote.suspect;
            }
            14 => {
                let node = name(self.dice.one(&MORE_NODES));
                self.view.votes.remove(&node);
                if self.dice.often() {
                    self.view.nodes.insert(node);
                } else {
                    self.view.nodes.remove(&node);
                }
            }
            15 if self.dice.often() => self.view.drains.clear(),
            15 => drop(self.view.drains.insert(target)),
            16 if self.dice.often() => self.view.confirmed.clear(),
            16 => drop(self.view.confirmed.insert(target.vip)),
            17 => self.view.frozen = !self.dice.often(),
            18 => self.view.confirmed_vips = !self.dice.often(),
            _ => self.view.confirmed_nodes = !self.dice.often(),
        }
    }

    /// Some nodes apply what is in force, and probe what it says.
    fn acknowledge(&mut self) {
        let Some(head) = self.kept.in_force().head.clone() else { return };
        for node in self.view.nodes.clone() {
            if !self.dice.often() {
                continue;
            }
            self.view.applied.insert(node.clone(), applied(head.term, head.epoch));
            Arc::make_mut(self.view.votes.entry(node).or_default()).targets = head.targets;
        }
    }

    /// Lets both decide, and writes what comes of it; whether anything does.
    fn step(&mut self) -> bool {
        let damaged: BTreeSet<VipName> = match self.dice.roll(10) {
            0 => [name(self.dice.one(&VIPS))].into(),
            _ => BTreeSet::new(),
        };
        let kept = self.kept.decide(&self.view, &damaged, self.now).unwrap();
        self.anew.start_over();
        let anew = self.anew.decide(&self.view, &damaged, self.now).unwrap();
        assert_eq!(kept, anew);
        let Some(publication) = kept else { return false };
        self.kept.published(publication.clone(), self.now);
        self.anew.published(publication, self.now);
        true
    }
}

#[test]
fn what_is_kept_from_turn_to_turn_changes_no_decision() {
    let (mut written, mut settled) = (0, 0);
    for seed in 0..150 {
        println!("seed {seed}");
        let mut pair = Pair::new(seed);
        for _ in 0..80 {
            for _ in 0..pair.dice.roll(3) {
                pair.edit();
            }
            if pair.dice.often() {
                pair.acknowledge();
            }
            pair.now += Duration::from_millis(pair.dice.one(&[0, 200, 200, 1000, 4000, 11_000]));
            written += usize::from(pair.step());
        }
        let head = pair.kept.in_force().head.as_ref();
        settled += usize::from(head.is_some_and(|head| !head.settling));
    }
    // The dice meet what they are there for.
    assert!(written > 3000 && settled > 100, "{written} heads, {settled} leaders that settled");
}

#[test]
fn a_step_in_which_nothing_changed_works_nothing_out_and_one_change_is_one_vip() {
    let vip = || checked_vip(&[("a", 100), ("b", 100), ("c", 100)]);
    let all = desired([("v1", vip()), ("v2", vip()), ("mqtt", vip())]);
    let mut case = Case::new(&all);
    let work = |case: &mut Case| {
        let before = case.leader.work();
        let publication = case.step();
        let after = case.leader.work();
        let work = Work {
            accepted: after.accepted - before.accepted,
            judged: after.judged - before.judged,
            decided: after.decided - before.decided,
        };
        (publication.is_some(), work)
    };
    while work(&mut case).0 {
        case.acknowledge();
    }
    assert_eq!(work(&mut case), (false, Work::default()));

    case.wish().reals.get_mut("a").unwrap().record.as_mut().unwrap().weight = 50;
    assert_eq!(work(&mut case), (true, Work { accepted: 1, judged: 0, decided: 1 }), "a real's record");
    // What was written is in force from here on.
    assert_eq!(work(&mut case), (false, Work { accepted: 1, judged: 0, decided: 1 }));
    assert_eq!(work(&mut case), (false, Work::default()), "while it waits for the nodes");
    case.acknowledge();
    while work(&mut case).0 {
        case.acknowledge();
    }
    assert_eq!(work(&mut case), (false, Work::default()));

    case.find_down(&["lb-1"], &["b"]);
    assert_eq!(
        work(&mut case),
        (false, Work { accepted: 0, judged: 1, decided: 0 }),
        "a vote that does not decide"
    );
    case.find_down(&["lb-2"], &["b"]);
    assert_eq!(work(&mut case), (true, Work { accepted: 0, judged: 1, decided: 1 }), "one that does");
    work(&mut case);
    assert_eq!(work(&mut case), (false, Work::default()), "while it is down");
}
