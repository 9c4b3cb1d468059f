#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::render::draw;
use super::screen::{Key, Screen};
use super::watcher::{Away, Sample};
use crate::overview::{Link, Overview, Shares};
use crate::testing::{NOW, assignment, found, good, name, target};
use crate::tree::Tree;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::sync::Arc;
use zk_schema::tree::{Decision, Event, Flag, Load};

/// Two VIPs that are alike but for their names.
fn two() -> Tree {
    let mut tree = good();
    let mqtt = Arc::clone(&tree.vips["mqtt"]);
    tree.vips.insert(name("other"), mqtt);
    tree.assignments.insert(name("other"), tree.assignments["mqtt"].clone());
    tree
}

fn screen(tree: &Tree) -> Screen {
    let link = Link { servers: "zk-1:2181".into(), session: "0x1".into(), read_ms: 12 };
    let overview = Overview::of(tree, link, NOW, &mut Shares::default());
    let decision = Decision {
        kind: "weights".into(),
        vip: Some(name("mqtt")),
        real: None,
        text: "a from 100 to 50".into(),
        extra: Default::default(),
    };
    let event = Event {
        term: 3,
        epoch: 41,
        node: name("lb-2"),
        at_ms: NOW * 1000,
        decisions: vec![decision],
        extra: Default::default(),
    };
    let sample =
        Sample { overview: Arc::new(overview), events: [event].into(), at_ms: NOW * 1000, away: None };
    Screen { sample: Some(sample), ..Screen::default() }
}

fn shown_in(screen: &Screen, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, screen, NOW * 1000 + 90_000)).unwrap();
    terminal.backend().to_string()
}

fn shown(screen: &Screen) -> String {
    shown_in(screen, 140, 40)
}

#[test]
fn leader_nodes_vips_reals_and_decisions_are_on_the_screen() {
    let mut tree = two();
    tree.loads.insert(target("a"), found(Load { connections: 600, at: NOW, extra: Default::default() }));
    tree.loads.insert(target("b"), found(Load { connections: 1200, at: NOW, extra: Default::default() }));
    let text = shown(&screen(&tree));
    for part in [
        "lb-2, term 3, for 2 h 1 min",
        "epoch 41 of term 3",
        "lb-3  live      3     41       0  0.1.0",
        "2 VIPs",
        "mqtt  198.51.100.10:1883/tcp",
        "3/3",
        "1,800",
        "33.3 %",
        "██████       600",
        "████████████ 1,200",
        "a from 100 to 50",
    ] {
        assert!(text.contains(part), "{part:?} is missing:\n{text}");
    }
    assert!(!text.contains("needs attention"), "{text}");
}

#[test]
fn what_needs_attention_is_on_the_screen_and_why_a_real_is_out() {
    let mut tree = two();
    tree.nodes.remove("lb-3");
    tree.flags.drain.insert(target("a"), Flag { by: "anna".into(), ..Flag::default() });
    assignment(&mut tree).weights.remove("a");
    let text = shown(&screen(&tree));
    assert!(text.contains("needs attention") && text.contains("- lb-3 is gone"), "{text}");
    assert!(text.contains("drained by anna") && text.contains("2/3"), "{text}");
}

#[test]
fn while_zookeeper_is_away_the_last_state_is_shown_with_its_age() {
    let mut screen = screen(&two());
    let away = Away { since_ms: NOW * 1000 + 10_000, why: "no answer".into() };
    screen.sample.as_mut().unwrap().away = Some(away);
    let text = shown(&screen);
    assert!(text.contains("ZooKeeper away for 1 min; what is shown is 1 min old (no answer)"), "{text}");
    assert!(text.contains("198.51.100.10:1883/tcp"), "{text}");
}

#[test]
fn keys_select_filter_explain_and_end() {
    let mut screen = screen(&two());
    assert!(!screen.press(Key::Down));
    assert_eq!((screen.place(), screen.selected.clone()), (1, Some(name("other"))));
    assert!(!screen.press(Key::Char('j')), "there is no third");
    assert_eq!(screen.place(), 1);
    screen.press(Key::Char('k'));
    assert_eq!(screen.place(), 0);
    for key in ['/', 'o', 't', 'q'].map(Key::Char) {
        assert!(!screen.press(key), "q is a letter here");
    }
    assert!(screen.vips().is_empty() && shown(&screen).contains("No such VIP."));
    screen.press(Key::Erase);
    screen.press(Key::Enter);
    assert_eq!(screen.vips().len(), 1);
    assert!(shown(&screen).contains("1 VIP with \"ot\""), "{}", shown(&screen));
    assert!(!screen.press(Key::Escape));
    assert_eq!(screen.vips().len(), 2);
    screen.press(Key::Char('?'));
    assert!(shown(&screen).contains("the next VIP"));
    assert!(!screen.press(Key::Escape));
    assert!(!screen.help && screen.press(Key::Char('q')));
    assert!(screen.press(Key::Interrupt));
}

#[test]
fn what_is_selected_stays_selected_when_others_come_and_go() {
    let mut screen = screen(&two());
    screen.press(Key::Last);
    let mut tree = two();
    let mqtt = Arc::clone(&tree.vips["mqtt"]);
    tree.vips.insert(name("alpha"), mqtt);
    screen.show(self::screen(&tree).sample.unwrap());
    assert_eq!(screen.vips()[screen.place()].0.as_str(), "other");
    screen.show(self::screen(&good()).sample.unwrap());
    assert_eq!(screen.vips()[screen.place()].0.as_str(), "mqtt");
}

#[test]
fn every_size_of_terminal_can_be_drawn_on() {
    let mut screen = screen(&two());
    screen.help = true;
    for (width, height) in [(1, 1), (10, 3), (40, 10), (80, 24), (100, 24), (400, 100)] {
        shown_in(&screen, width, height);
    }
    shown_in(&Screen::default(), 80, 24);
}
