//! The content of the screen, and the effect of keys on it.

use super::watcher::Sample;
use crate::overview::VipView;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use zk_schema::VipName;

/// A key that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A character.
    Char(char),
    /// Up.
    Up,
    /// Down.
    Down,
    /// To the first one.
    First,
    /// To the last one.
    Last,
    /// The last character is to go.
    Erase,
    /// Enter.
    Enter,
    /// Escape.
    Escape,
    /// Ends it at once.
    Interrupt,
}

impl Key {
    pub(super) fn of(event: KeyEvent) -> Option<Self> {
        Some(match event.code {
            KeyCode::Char('c' | 'd') if event.modifiers.contains(KeyModifiers::CONTROL) => Self::Interrupt,
            KeyCode::Char(c) if !event.modifiers.contains(KeyModifiers::ALT) => Self::Char(c),
            KeyCode::Up => Self::Up,
            KeyCode::Down => Self::Down,
            KeyCode::Home | KeyCode::PageUp => Self::First,
            KeyCode::End | KeyCode::PageDown => Self::Last,
            KeyCode::Backspace => Self::Erase,
            KeyCode::Enter => Self::Enter,
            KeyCode::Esc => Self::Escape,
            _ => return None,
        })
    }
}

/// The content of the screen.
#[derive(Clone, Debug, Default)]
pub(super) struct Screen {
    /// The last finding.
    pub(super) sample: Option<Sample>,
    /// The VIP that is selected, if one was.
    pub(super) selected: Option<VipName>,
    /// Text that VIPs' names, or those of their reals, must contain to be listed.
    pub(super) filter: String,
    /// True if the filter is being typed.
    pub(super) typing: bool,
    /// True if the keys are explained.
    pub(super) help: bool,
}

impl Screen {
    /// Shows what was found.
    pub(super) fn show(&mut self, sample: Sample) {
        self.sample = Some(sample);
    }

    /// The VIPs that the filter lets through.
    pub(super) fn vips(&self) -> Vec<(&VipName, &VipView)> {
        let vips = self.sample.iter().flat_map(|sample| &sample.overview.vips);
        let wanted = |(name, vip): &(&VipName, &VipView)| {
            name.as_str().contains(&self.filter)
                || vip.reals.keys().any(|real| real.as_str().contains(&self.filter))
        };
        vips.filter(wanted).collect()
    }

    /// The place of the selected VIP among those: the first one if it is not among them.
    pub(super) fn place(&self) -> usize {
        let selected = |selected: &VipName| self.vips().iter().position(|(name, _)| *name == selected);
        self.selected.as_ref().and_then(selected).unwrap_or(0)
    }

    /// Does what a key says. `true`: that is all.
    pub(super) fn press(&mut self, key: Key) -> bool {
        if key == Key::Interrupt {
            return true;
        }
        if self.typing {
            match key {
                Key::Char(c) => self.filter.push(c),
                Key::Erase => drop(self.filter.pop()),
                Key::Enter => self.typing = false,
                Key::Escape => {
                    self.filter.clear();
                    self.typing = false;
                }
                Key::Up => self.select(self.place().saturating_sub(1)),
                Key::Down => self.select(self.place() + 1),
                Key::First | Key::Last | Key::Interrupt => {}
            }
            return false;
        }
        match key {
            Key::Char('q') => return true,
            Key::Char('?') => self.help = !self.help,
            Key::Escape if self.help => self.help = false,
            Key::Escape => self.filter.clear(),
            Key::Char('/') => {
                self.typing = true;
                self.help = false;
            }
            Key::Up | Key::Char('k') => self.select(self.place().saturating_sub(1)),
            Key::Down | Key::Char('j') => self.select(self.place() + 1),
            Key::First | Key::Char('g') => self.select(0),
            Key::Last | Key::Char('G') => self.select(usize::MAX),
            Key::Char(_) | Key::Erase | Key::Enter | Key::Interrupt => {}
        }
        false
    }

    /// Selects the VIP at this place, or the last one.
    fn select(&mut self, place: usize) {
        let vips = self.vips();
        let name = vips.get(place).or(vips.last()).map(|(name, _)| (*name).clone());
        self.selected = name;
    }
}
