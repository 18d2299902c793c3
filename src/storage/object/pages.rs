//! The pages of a listing: where the next one begins, and that the last one comes.
//!
//! A server says how to ask for the page after one, in words of its own, and lists in whatever order it
//! has. So what goes in circles is told by what was before, of which one page is remembered: for as many
//! further ones as there were until then, and twice as many each time (Brent, "An improved Monte Carlo
//! factorization algorithm", 1980). However many pages there are, that takes no more memory.

use crate::protocol::chunk::Digest;
use crate::storage::remote::{Answer, Class, Fault};

/// Where a listing is.
#[derive(Debug, Default)]
pub struct Pages {
    /// How to ask for the page that is due; `None` for the first.
    marker: Option<String>,
    is_over: bool,
    remembered: Option<Remembered>,
    /// How many pages came since that one, and after how many another one is remembered.
    since: u64,
    span: u64,
    /// How many pages in a row had nothing new.
    idle: u32,
}

/// A page that came some time ago.
#[derive(Debug)]
struct Remembered {
    names: Digest,
    /// How to ask for the page after it.
    marker: String,
}

impl Pages {
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// How to ask for the page that is due; `None` for the first.
    pub fn marker(&self) -> Option<&str> {
        self.marker.as_deref()
    }

    /// Goes on behind a page: it has these names, and `next` asks for the one after it.
    ///
    /// # Errors
    ///
    /// [`Class::Violation`] if this would go on for ever.
    pub fn turn(
        &mut self,
        next: Option<String>,
        names: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Answer<()> {
        let Some(next) = next else {
            self.is_over = true;
            return Ok(());
        };
        let (names, count) = digest_of(names);
        let is_same = self.remembered.as_ref().is_some_and(|it| it.names == names);
        let is_next = self.remembered.as_ref().is_some_and(|it| it.marker == next);
        // One name alone may be a prefix that a server tells of once for each so many keys.
        if is_next || is_same && count > 1 {
            return Err(Fault::new(Class::Violation, "the server's listing goes in circles"));
        }
        self.idle = if count == 0 || is_same { self.idle + 1 } else { 0 };
        if self.idle > MAX_IDLE {
            let text = "the server lists nothing new, page after page";
            return Err(Fault::new(Class::Violation, text));
        }
        self.since += 1;
        if self.since >= self.span {
            self.remembered = Some(Remembered { names, marker: next.clone() });
            (self.since, self.span) = (0, (self.span * 2).max(1));
        }
        self.marker = Some(next);
        Ok(())
    }
}

/// What tells the names of a page from those of another, and how many there are.
fn digest_of(names: impl IntoIterator<Item = impl AsRef<[u8]>>) -> (Digest, u64) {
    let (mut hasher, mut count) = (blake3::Hasher::new(), 0);
    for name in names {
        let name = name.as_ref();
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
        count += 1;
    }
    (Digest(*hasher.finalize().as_bytes()), count)
}

/// How many pages in a row may have nothing new: servers leave out what was removed.
const MAX_IDLE: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pages are asked for until a listing is given up, of at most so many.
    fn given_up(max: u64, page: impl Fn(u64) -> (String, Vec<String>)) -> Option<u64> {
        let mut pages = Pages::default();
        for number in 0..max {
            let (next, names) = page(number);
            if let Err(fault) = pages.turn(Some(next), names) {
                assert_eq!(fault.class, Class::Violation);
                return Some(number);
            }
        }
        None
    }

    #[test]
    fn markers_that_come_again_are_given_up() {
        for (before, period) in [(0, 1), (0, 2), (5, 1), (5, 2), (1000, 700)] {
            let marker = |number: u64| {
                let at = if number < before { number } else { before + (number - before) % period };
                (at.to_string(), vec![number.to_string(), "x".to_owned()])
            };
            let at = given_up(100_000, marker).unwrap();
            assert!(at <= 4 * (before + period), "{before}, {period}: {at}");
        }
    }

    /// A server that does not look at the marker, and gives another one each time.
    #[test]
    fn names_that_come_again_are_given_up() {
        let page = |number: u64| {
            let names = [0, 1].map(|it| (number % 3 * 2 + it).to_string());
            (number.to_string(), names.to_vec())
        };
        assert!(given_up(100, page).is_some());
    }

    #[test]
    fn nothing_for_ever_is_given_up() {
        for names in [vec![], vec!["one/".to_owned()]] {
            let at = given_up(1_000_000, |number| (number.to_string(), names.clone())).unwrap();
            assert!((10_000..10_010).contains(&at), "{at}");
        }
    }

    #[test]
    fn long_listings_in_any_order_are_followed() {
        let page = |number: u64| {
            // Every third one is empty, and half of the others tell of one prefix again.
            let names = match number % 6 {
                0 | 3 => vec![],
                1 | 2 => vec!["one/".to_owned()],
                _ => vec![(u64::MAX - number).to_string(), number.to_string()],
            };
            (format!("{:x}-{number}", number * 31 % 256), names)
        };
        assert_eq!(given_up(200_000, page), None);
    }

    #[test]
    fn the_last_page_is_the_end() {
        let mut pages = Pages::default();
        assert_eq!((pages.marker(), pages.is_over()), (None, false));
        pages.turn(Some("t".to_owned()), ["a"]).unwrap();
        assert_eq!((pages.marker(), pages.is_over()), (Some("t"), false));
        pages.turn(None, ["b"]).unwrap();
        assert!(pages.is_over());
    }
}
