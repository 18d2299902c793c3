//! Patterns of host names, as `ssh_config(5)` and the file of known hosts have them (PATTERNS).

/// Whether a pattern with `*` and `?` means all of a name.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut in_name) = (0, 0);
    // Where to go on after the last `*`: it takes one character more.
    let mut retry = None;
    while in_name < name.len() {
        match pattern.get(at) {
            Some('*') => {
                at += 1;
                retry = Some((at, in_name));
            }
            Some(c) if *c == '?' || name.get(in_name) == Some(c) => {
                at += 1;
                in_name += 1;
            }
            _ => {
                let Some((after, taken)) = retry else { return false };
                at = after;
                in_name = taken + 1;
                retry = Some((after, in_name));
            }
        }
    }
    pattern.iter().skip(at).all(|c| *c == '*')
}

/// Whether a list of patterns means a name: at least one does, and none behind a `!`.
pub fn any_matches<'a>(patterns: impl IntoIterator<Item = &'a str>, name: &str) -> bool {
    let mut is_meant = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(pattern) if matches(pattern, name) => return false,
            Some(_) => {}
            None => is_meant |= matches(pattern, name),
        }
    }
    is_meant
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_names() {
        for (pattern, name, is_meant) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("", "", true),
            ("*", "", true),
            ("*.example.org", "a.b.example.org", true),
            ("*.example.org", "example.org", false),
            ("10.0.?.1", "10.0.7.1", true),
            ("10.0.?.1", "10.0.77.1", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("[*]:22??", "[h]:2222", true),
        ] {
            assert_eq!(matches(pattern, name), is_meant, "{pattern} {name}");
        }
        assert!(any_matches(["*", "!b"], "a"));
        assert!(!any_matches(["*", "!b"], "b"));
        assert!(!any_matches(["!b"], "a"));
    }

    /// The clever matcher against the obvious one.
    fn slowly(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, rest) => rest.is_none(),
            (Some(('*', after)), rest) => {
                slowly(after, name) || rest.is_some_and(|(_, shorter)| slowly(pattern, shorter))
            }
            (Some((c, after)), Some((first, rest))) => {
                (*c == '?' || c == first) && slowly(after, rest)
            }
            (Some(_), None) => false,
        }
    }

    proptest::proptest! {
        #[test]
        fn both_matchers_agree(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            proptest::prop_assert_eq!(
                matches(&pattern, &name),
                slowly(&chars(&pattern), &chars(&name))
            );
        }
    }
}
