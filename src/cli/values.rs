//! Values of flags that rsync has too, in rsync's own notation.

use std::str::FromStr;

use super::units::ValueError;

/// A limit of file sizes, in bytes: `1.5M`, `100KB`, `4GiB-1`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SizeLimit(pub u64);

impl FromStr for SizeLimit {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError::new(format!(
                "{text} is not a size: write a number with K, M, G, T or P (binary), KB, MB and so \
                 on (decimal), or without; +1 or -1 may follow"
            ))
        };
        let in_number = |c: char| c.is_ascii_digit() || c == '.';
        let end = text.find(|c: char| !in_number(c)).unwrap_or(text.len());
        let (number, rest) = text.split_at(end);
        let (unit, offset) = match rest.strip_suffix("+1") {
            Some(unit) => (unit, 1),
            None => rest.strip_suffix("-1").map_or((rest, 0), |unit| (unit, -1)),
        };
        let factor = factor(unit).ok_or_else(wrong)?;
        let bytes = scaled(number, factor).ok_or_else(wrong)?;
        bytes.checked_add_signed(offset).map(Self).ok_or_else(wrong)
    }
}

/// What a unit multiplies by.
fn factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let Some(letter) = unit.bytes().next() else { return Some(1) };
    let exponent = match letter {
        b'b' => 0,
        b'k' => 1,
        b'm' => 2,
        b'g' => 3,
        b't' => 4,
        b'p' => 5,
        _ => return None,
    };
    match unit.get(1..)? {
        "" | "ib" => 1024_u64.checked_pow(exponent),
        "b" => 1000_u64.checked_pow(exponent),
        _ => None,
    }
}

/// A decimal number times a factor, without its fraction.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > MAX_PLACES {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    let parts = digits(fraction)?.checked_mul(factor.into())?;
    let parts = parts / 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let bytes = digits(whole)?.checked_mul(factor.into())?.checked_add(parts)?;
    u64::try_from(bytes).ok()
}

/// How many levels below the source are taken: at least 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Depth(pub u32);

impl FromStr for Depth {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let depth = text.parse().ok().filter(|depth| *depth > 0);
        let wrong = || ValueError::new(format!("{text} is not a number from 1 on"));
        depth.map(Self).ok_or_else(wrong)
    }
}

/// By how many seconds times may differ. rsync's `-1` means none, as times are always compared to
/// the nanosecond here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Window(pub u32);

impl FromStr for Window {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "-1" {
            return Ok(Self(0));
        }
        let wrong = |_| ValueError::new(format!("{text} is not a number of seconds"));
        text.parse().map(Self).map_err(wrong)
    }
}

/// `USER:GROUP`, `USER` or `:GROUP`: names or numbers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ownership {
    pub user: Option<Vec<u8>>,
    pub group: Option<Vec<u8>>,
}

impl FromStr for Ownership {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let wrong = |why: &str| ValueError::new(format!("{text:?} is no owner: {why}"));
        if user.is_empty() && group.is_empty() {
            return Err(wrong("write USER:GROUP, USER or :GROUP"));
        }
        if text.contains(['*', ',', '\0']) || group.contains(':') {
            return Err(wrong("one user and one group are set for everything"));
        }
        let part = |part: &str| (!part.is_empty()).then(|| part.as_bytes().to_vec());
        Ok(Self { user: part(user), group: part(group) })
    }
}

/// Changes of permissions as `chmod` has them, with `D` and `F` in front for directories and other
/// things only: `Dg+s,ug+w,Fo-w,+X`, `D2775,F664`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ModeChanges(pub String);

impl FromStr for ModeChanges {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = |part: &str| {
            ValueError::new(format!(
                "{part:?} is no change of permissions: write such as u+rw, g=rX, o-w, D755, F644"
            ))
        };
        match text.split(',').find(|part| !is_mode_change(part)) {
            None => Ok(Self(text.into())),
            Some(part) => Err(wrong(part)),
        }
    }
}

fn is_mode_change(part: &str) -> bool {
    let part = part.trim_start_matches(['D', 'F']);
    if part.starts_with(|c: char| c.is_ascii_digit()) {
        return part.len() <= 4 && part.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    }
    let Some(change) = part.trim_start_matches(['u', 'g', 'o', 'a']).strip_prefix(['+', '-', '='])
    else {
        return false;
    };
    // The permissions of another class may be named instead.
    matches!(change, "u" | "g" | "o") || change.bytes().all(|byte| b"rwxXst".contains(&byte))
}

/// How many digits a size may have after its point.
const MAX_PLACES: usize = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_rsync_reads_them() {
        for (text, wanted) in [
            ("0", 0),
            ("512", 512),
            ("512b", 512),
            ("1K", 1024),
            ("1KiB", 1024),
            ("1KB", 1000),
            ("1kb-1", 999),
            ("1.5m", 3 << 19),
            ("1.5mb", 1_500_000),
            (".5k", 512),
            ("2g+1", (2 << 30) + 1),
            ("1P", 1 << 50),
            ("5+1", 6),
        ] {
            assert_eq!(text.parse(), Ok(SizeLimit(wanted)), "{text}");
        }
        for wrong in ["", ".", "K", "-1", "0-1", "1+2", "1X", "1KiX", "1 K", "99999999P", "1.2.3"] {
            assert!(wrong.parse::<SizeLimit>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn owners_are_one_user_and_one_group() {
        let parts = |text: &str| text.parse::<Ownership>().map(|it| (it.user, it.group));
        assert_eq!(parts("a:b"), Ok((Some(b"a".into()), Some(b"b".into()))));
        assert_eq!(parts("1000"), Ok((Some(b"1000".into()), None)));
        assert_eq!(parts("a:"), Ok((Some(b"a".into()), None)));
        assert_eq!(parts(":b"), Ok((None, Some(b"b".into()))));
        for wrong in ["", ":", "a:b:c", "*:b"] {
            assert!(parts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn changes_of_permissions_are_checked() {
        for text in
            ["u+rw", "Dg+s,ug+w,Fo-w,+X", "D2775,F664", "a=rwxXst", "=", "go=", "g=u", "755"]
        {
            assert!(text.parse::<ModeChanges>().is_ok(), "{text}");
        }
        for wrong in ["", "u", "u+q", "x+u", "888", "77777", "u+r,,g+r", "u+r w", "g=uo"] {
            assert!(wrong.parse::<ModeChanges>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn windows_and_depths() {
        assert_eq!(("2".parse(), "-1".parse()), (Ok(Window(2)), Ok(Window(0))));
        assert!("-2".parse::<Window>().is_err() && "0".parse::<Depth>().is_err());
        assert_eq!("3".parse(), Ok(Depth(3)));
    }
}
