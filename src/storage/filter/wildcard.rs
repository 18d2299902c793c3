//! Wildcards: `*`, `**`, `?`, `[...]` and backslashes, as rsync reads them.
//!
//! In: the bytes of a pattern, then texts. Out: whether the whole of a text matches. Patterns come
//! from peers, so a search never takes more steps than a small multiple of pattern times text, and
//! needs neither recursion nor memory.

/// A compiled wildcard pattern.
#[derive(Clone, Debug)]
pub struct Wildcard {
    tokens: Box<[Token]>,
    sets: Box<[Set]>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Token {
    Byte(u8),
    /// `?`: any byte but a slash.
    Any,
    /// `[...]`, by its index.
    Set(u16),
    /// `*`: any number of bytes that are no slashes.
    Star,
    /// `**` and longer: any bytes.
    Deep,
    /// Starts here or after any slash. Only ever the first token.
    Components,
}

impl Wildcard {
    /// Compiles a pattern. Something malformed, such as a `[` that is not closed, matches nothing,
    /// as in rsync.
    pub fn new(pattern: &[u8]) -> Self {
        Self::compile(Vec::new(), pattern)
    }

    /// The same for a pattern that may match any trailing components of a text.
    pub fn after_any_slash(pattern: &[u8]) -> Self {
        Self::compile(vec![Token::Components], pattern)
    }

    fn compile(mut tokens: Vec<Token>, pattern: &[u8]) -> Self {
        let mut sets = Vec::new();
        let mut rest = pattern;
        while let Some(token) = next_token(&mut rest, &mut sets) {
            tokens.push(token);
        }
        Self { tokens: tokens.into(), sets: sets.into() }
    }

    pub fn matches(&self, text: &[u8]) -> bool {
        self.search(text).0
    }

    /// Whether the text matches, and how many steps it took to find out.
    ///
    /// On a mismatch only two decisions can be worth changing: where the last `*` ends, and where
    /// the last `**` ends. Everything before them stands at its first possible place, and leaves
    /// the most to what follows. A `*` that would have to pass a slash, or the end of the text, has
    /// shown that nothing later in its component can match either, and so the last `**` may go on
    /// to the next component: that is what keeps the steps at pattern times text.
    fn search(&self, text: &[u8]) -> (bool, usize) {
        let (mut at, mut token, mut steps) = (0, 0, 0);
        let mut star: Option<Retry> = None;
        let mut deep: Option<Retry> = None;
        loop {
            steps += 1;
            match self.tokens.get(token) {
                Some(Token::Star) => {
                    token += 1;
                    star = Some(Retry { at, token, by_component: false });
                    continue;
                }
                Some(kind @ (Token::Deep | Token::Components)) => {
                    token += 1;
                    star = None;
                    deep = Some(Retry { at, token, by_component: *kind == Token::Components });
                    continue;
                }
                Some(one) if text.get(at).is_some_and(|byte| self.accepts(*one, *byte)) => {
                    at += 1;
                    token += 1;
                    continue;
                }
                None if at == text.len() => return (true, steps),
                // What ends with `**` matches whatever is left.
                None if self.tokens.last() == Some(&Token::Deep) => return (true, steps),
                None | Some(_) => {}
            }
            let retry = match star.as_mut().map(|star| (text.get(star.at), star)) {
                Some((None, _)) => None,
                Some((Some(b'/'), _)) => {
                    star = None;
                    deep.as_mut().and_then(|deep| deep.skip_component(text))
                }
                Some((Some(_), star)) => star.skip_byte(text),
                None => deep.as_mut().and_then(|deep| deep.advance(text)),
            };
            match retry {
                Some(retry) => (at, token) = retry,
                None => return (false, steps),
            }
        }
    }

    fn accepts(&self, token: Token, byte: u8) -> bool {
        match token {
            Token::Byte(wanted) => wanted == byte,
            Token::Any => byte != b'/',
            Token::Set(index) => {
                self.sets.get(usize::from(index)).is_some_and(|set| set.contains(byte))
            }
            Token::Star | Token::Deep | Token::Components => false,
        }
    }
}

/// Where to go on after a mismatch.
struct Retry {
    /// Where in the text the star ends so far.
    at: usize,
    /// The token after the star.
    token: usize,
    /// Whether it may end after slashes only.
    by_component: bool,
}

impl Retry {
    fn advance(&mut self, text: &[u8]) -> Option<(usize, usize)> {
        if self.by_component { self.skip_component(text) } else { self.skip_byte(text) }
    }

    fn skip_byte(&mut self, text: &[u8]) -> Option<(usize, usize)> {
        self.at += 1;
        (self.at <= text.len()).then_some((self.at, self.token))
    }

    /// Goes on after the next slash.
    fn skip_component(&mut self, text: &[u8]) -> Option<(usize, usize)> {
        let rest = text.get(self.at..)?;
        self.at += rest.iter().position(|byte| *byte == b'/')? + 1;
        Some((self.at, self.token))
    }
}

/// The bytes that a `[...]` stands for. Never a slash.
#[derive(Clone, Copy, Debug, Default)]
pub struct Set([u128; 2]);

impl Set {
    /// Reads a set after its `[`. The first byte in it may be a `]`. `None` if it is malformed.
    pub fn parse(rest: &mut &[u8]) -> Option<Self> {
        let is_negated = matches!(rest.first(), Some(b'!' | b'^'));
        if is_negated {
            take(rest)?;
        }
        let mut set = Self::default();
        // What a range may start from: the byte before, unless a range or a class ended there.
        let mut start = None;
        let mut is_first = true;
        loop {
            let byte = take(rest)?;
            match (byte, start, rest.first()) {
                (b']', _, _) if !is_first => return Some(set.finish(is_negated)),
                (b'-', Some(low), Some(next)) if *next != b']' => {
                    let high = take_escaped(rest)?;
                    (low..=high).for_each(|byte| set.insert(byte));
                    start = None;
                }
                (b'[', _, Some(b':')) if let Some(name) = class_name(rest) => {
                    set.insert_class(name)?;
                    start = None;
                }
                _ => {
                    let byte = if byte == b'\\' { take(rest)? } else { byte };
                    set.insert(byte);
                    start = Some(byte);
                }
            }
            is_first = false;
        }
    }

    pub fn contains(self, byte: u8) -> bool {
        self.0[usize::from(byte >> 7)] >> (byte & 127) & 1 == 1
    }

    fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 7)] |= 1 << (byte & 127);
    }

    fn insert_if(&mut self, test: impl Fn(&u8) -> bool) {
        (0..=u8::MAX).filter(test).for_each(|byte| self.insert(byte));
    }

    fn finish(mut self, is_negated: bool) -> Self {
        if is_negated {
            self.0 = self.0.map(|half| !half);
        }
        self.0[0] &= !(1 << b'/');
        self
    }

    /// Inserts `[:name:]`.
    fn insert_class(&mut self, name: &[u8]) -> Option<()> {
        match name {
            b"alnum" => self.insert_if(u8::is_ascii_alphanumeric),
            b"alpha" => self.insert_if(u8::is_ascii_alphabetic),
            b"blank" => self.insert_if(|byte| matches!(byte, b' ' | b'\t')),
            b"cntrl" => self.insert_if(u8::is_ascii_control),
            b"digit" => self.insert_if(u8::is_ascii_digit),
            b"graph" => self.insert_if(u8::is_ascii_graphic),
            b"lower" => self.insert_if(u8::is_ascii_lowercase),
            b"print" => self.insert_if(|byte| matches!(byte, b' '..=b'~')),
            b"punct" => self.insert_if(u8::is_ascii_punctuation),
            b"space" => self.insert_if(|byte| is_space(*byte)),
            b"upper" => self.insert_if(u8::is_ascii_uppercase),
            b"xdigit" => self.insert_if(u8::is_ascii_hexdigit),
            _ => return None,
        }
        Some(())
    }
}

/// White space as C sees it.
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Whether a pattern has wildcards at all. Where it has none, backslashes stand for themselves.
pub fn has_wildcards(pattern: &[u8]) -> bool {
    pattern.iter().any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

fn next_token(rest: &mut &[u8], sets: &mut Vec<Set>) -> Option<Token> {
    let (first, tail) = rest.split_first()?;
    *rest = tail;
    Some(match first {
        b'*' => {
            let stars = rest.iter().take_while(|byte| **byte == b'*').count();
            *rest = rest.get(stars..)?;
            if stars == 0 { Token::Star } else { Token::Deep }
        }
        b'?' => Token::Any,
        b'[' => set_token(Set::parse(rest), rest, sets),
        b'\\' => match rest.split_first() {
            Some((byte, tail)) => {
                *rest = tail;
                Token::Byte(*byte)
            }
            None => set_token(None, rest, sets),
        },
        byte => Token::Byte(*byte),
    })
}

/// `None` is for what is malformed: nothing matches it, nor anything around it.
fn set_token(set: Option<Set>, rest: &mut &[u8], sets: &mut Vec<Set>) -> Token {
    if set.is_none() {
        *rest = &[];
    }
    // A rule is too short for more sets than a u16 can count.
    let index = u16::try_from(sets.len()).unwrap_or(u16::MAX);
    sets.push(set.unwrap_or_default());
    Token::Set(index)
}

/// Takes `:name:]` off the front. `None` if it is not closed like that, and so is no class.
fn class_name<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let body = rest.get(1..)?;
    let end = body.iter().position(|byte| *byte == b']')?;
    let name = body.get(..end)?.strip_suffix(b":")?;
    *rest = body.get(end + 1..)?;
    Some(name)
}

fn take(rest: &mut &[u8]) -> Option<u8> {
    let (byte, tail) = rest.split_first()?;
    *rest = tail;
    Some(*byte)
}

fn take_escaped(rest: &mut &[u8]) -> Option<u8> {
    match take(rest)? {
        b'\\' => take(rest),
        byte => Some(byte),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sets_and_wildcards_match_as_in_rsync() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("*", &["", "a", "a b"], &["/", "a/b"]),
            ("**", &["", "a", "a/b", "/"], &[]),
            ("***", &["", "a/b/"], &[]),
            ("a*", &["a", "abc"], &["ba", "a/b"]),
            ("*.o", &[".o", "a.o", "a.o.o"], &["a.oo", "a/b.o"]),
            ("a?c", &["abc"], &["ac", "a/c", "abbc"]),
            ("a*c/d", &["ac/d", "abc/d"], &["a/c/d", "ac/dd"]),
            ("a**c", &["ac", "a/b/c", "acc"], &["acd", "bac"]),
            ("**/b", &["/b", "a/b", "/a/b"], &["b", "ab"]),
            ("**a*b", &["ab", "x/a/axb", "aab", "a/ab"], &["a/b", "ab/"]),
            ("*a**b*c", &["abc", "xa/b/xbxc", "ab/bc"], &["ab/c", "a/bc/"]),
            ("[abc]", &["a", "c"], &["d", "", "aa"]),
            ("[a-c]x", &["ax", "bx"], &["dx", "-x"]),
            ("[!a-c]", &["d", "-"], &["a", "/", ""]),
            ("[^a]", &["b", "^"], &["a", "/"]),
            ("[]a]", &["]", "a"], &["b"]),
            ("[!]a]", &["b"], &["]", "a"]),
            ("[a-]", &["a", "-"], &["b"]),
            ("[-a]", &["a", "-"], &["b"]),
            ("[--a]", &["-", "0", "a"], &["/", "b", ","]),
            ("[\\]]", &["]"], &["\\"]),
            ("[a\\-c]", &["a", "-", "c"], &["b", "\\"]),
            ("[[:alpha:]_][[:digit:]]", &["a1", "_9"], &["1a", "aa"]),
            ("[![:space:]]", &["a"], &[" ", "\t", "\x0b"]),
            ("[[:x]", &["[", ":", "x"], &["a"]),
            ("[[:x:]]", &[], &["x", ":", "[:x:]", "["]),
            ("[[:alpha:]-z]", &["a", "-", "z"], &["1"]),
            ("a[/]b", &[], &["a/b"]),
            ("[a", &[], &["a", "[a", ""]),
            ("*[", &[], &["[", "a"]),
            ("\\*a*", &["*a", "*ab"], &["a", "xa"]),
            ("\\\\*", &["\\", "\\a"], &["a"]),
            ("*\\", &[], &["\\", "a\\", "a"]),
            ("", &[""], &["a"]),
        ];
        for (pattern, yes, no) in cases {
            let wildcard = Wildcard::new(pattern.as_bytes());
            for text in *yes {
                assert!(wildcard.matches(text.as_bytes()), "{pattern} should match {text}");
            }
            for text in *no {
                assert!(!wildcard.matches(text.as_bytes()), "{pattern} should not match {text}");
            }
        }
    }

    #[test]
    fn classes_hold_what_c_puts_into_them() {
        let cases = [
            ("alnum", 62),
            ("alpha", 52),
            ("blank", 2),
            ("cntrl", 33),
            ("digit", 10),
            ("graph", 93),
            ("lower", 26),
            ("print", 94),
            ("punct", 31),
            ("space", 6),
            ("upper", 26),
            ("xdigit", 22),
        ];
        for (name, count) in cases {
            let wildcard = Wildcard::new(format!("[[:{name}:]]").as_bytes());
            // The slash is in none of them.
            let found = (0..=u8::MAX).filter(|byte| wildcard.matches(&[*byte])).count();
            assert_eq!(found, count, "{name}");
        }
    }

    /// Patterns that would take ages if every star were tried with every other.
    #[test]
    fn hard_patterns_take_few_steps() {
        let long = "a".repeat(4000);
        let deep = "a/".repeat(2000);
        let wide = ["a".repeat(200), "b".into()].concat();
        let wide = format!("{wide}/").repeat(20);
        let patterns = [
            "*a".repeat(1000) + "b",
            "**a".repeat(1000) + "b",
            "*a**a".repeat(500) + "b",
            "**/".repeat(1000) + "b",
            "**/*a".repeat(500) + "b",
            "**/*/*".repeat(300) + "x",
            "**".to_owned() + &"a*".repeat(1000) + "x",
            "**".to_owned() + &"*a/".repeat(1000) + "x",
            "**".to_owned() + &"a".repeat(2000) + "x",
            "**a*a*b/".to_owned() + &"a*b/".repeat(10) + "x",
            "[!b]*".repeat(1000) + "[b]",
            "?*".repeat(1000) + "/x",
        ];
        for pattern in &patterns {
            let starts = [Wildcard::new, Wildcard::after_any_slash];
            for wildcard in starts.map(|start| start(pattern.as_bytes())) {
                for text in [&long, &deep, &wide] {
                    let (_, steps) = wildcard.search(text.as_bytes());
                    let limit = bound(&wildcard, text.as_bytes());
                    assert!(steps <= limit, "{pattern}: {steps} > {limit}");
                }
            }
        }
    }

    fn bound(wildcard: &Wildcard, text: &[u8]) -> usize {
        2 * (wildcard.tokens.len() + 1) * (text.len() + 1)
    }

    /// The same question, answered by trying everything. Sets are without ranges and classes.
    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        let rest = |from: usize| pattern.get(from..).unwrap_or_default();
        match (pattern, text) {
            ([], text) => text.is_empty(),
            ([b'*', b'*', ..], text) => {
                naive(rest(2), text) || text.split_first().is_some_and(|(_, t)| naive(pattern, t))
            }
            ([b'*', ..], text) => {
                let eats = text.split_first().filter(|(byte, _)| **byte != b'/');
                naive(rest(1), text) || eats.is_some_and(|(_, text)| naive(pattern, text))
            }
            ([b'?', ..], [byte, tail @ ..]) => *byte != b'/' && naive(rest(1), tail),
            ([b'[', b'!', a, b']', ..], [byte, tail @ ..]) => {
                byte != a && *byte != b'/' && naive(rest(4), tail)
            }
            ([b'[', a, b, b']', ..], [byte, tail @ ..]) => {
                (byte == a || byte == b) && naive(rest(4), tail)
            }
            ([b'\\', wanted, ..], [byte, tail @ ..]) => byte == wanted && naive(rest(2), tail),
            ([wanted, ..], [byte, tail @ ..]) => byte == wanted && naive(rest(1), tail),
            ([_, ..], []) => false,
        }
    }

    fn pattern() -> impl Strategy<Value = Vec<u8>> {
        let pieces: &[&str] = &["a", "b", "/", "*", "**", "?", "[ab]", "[!a]", "\\*", "*/", "**/"];
        vec(proptest::sample::select(pieces), 0..12).prop_map(|pieces| pieces.concat().into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn a_search_finds_what_trying_everything_finds(
            pattern in pattern(),
            text in vec(proptest::sample::select(&b"aab//*"[..]), 0..14),
        ) {
            let wildcard = Wildcard::new(&pattern);
            let (found, steps) = wildcard.search(&text);
            prop_assert_eq!(found, naive(&pattern, &text));
            prop_assert!(steps <= bound(&wildcard, &text));

            let tails = Wildcard::after_any_slash(&pattern);
            let mut starts = text.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            let expected = naive(&pattern, &text) || starts.any(|(at, _)| naive(&pattern, &text[at + 1..]));
            let (found, steps) = tails.search(&text);
            prop_assert_eq!(found, expected);
            prop_assert!(steps <= bound(&tails, &text));
        }

        #[test]
        fn any_bytes_are_a_pattern(pattern in vec(any::<u8>(), 0..60), text in vec(any::<u8>(), 0..60)) {
            let wildcard = Wildcard::new(&pattern);
            prop_assert!(wildcard.search(&text).1 <= bound(&wildcard, &text));
        }
    }
}
