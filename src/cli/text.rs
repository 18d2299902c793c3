//! Numbers and texts as people read them.

use std::fmt::Write as _;
use std::time::Duration;

use crate::protocol::manifest::{Escaped, Timestamp};

/// `1.07 GB`: three digits, decimal units, never more than there is.
pub fn bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 5] = [
        (1_000_000_000_000_000, "PB"),
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "kB"),
    ];
    let Some((unit, name)) = UNITS.iter().find(|(unit, _)| count >= *unit) else {
        return format!("{count} B");
    };
    let (whole, hundredths) = (count / unit, count % unit * 100 / unit);
    match whole {
        0..10 => format!("{whole}.{hundredths:02} {name}"),
        10..100 => format!("{whole}.{} {name}", hundredths / 10),
        _ => format!("{whole} {name}"),
    }
}

/// `1,070,000`: all digits, in groups of three.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

/// `2.1 s`, `3:07`, `1:02:03`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{}.{} s", seconds, time.subsec_millis() / 100),
        60..3600 => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

/// Bytes a second, if the time can be measured at all.
pub fn rate(count: u64, time: Duration) -> u64 {
    let micros = time.as_micros().max(1);
    u64::try_from(u128::from(count) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

/// `1 file`, `2 files`.
pub fn plural(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A sentence that a peer or a program may have had a part in, safe for a terminal.
///
/// Paths in it are escaped where they were put in, so that backslashes stay as they are.
pub fn shown(text: &str) -> String {
    let parts: Vec<_> = text.split('\\').map(|part| Escaped(part.as_bytes()).to_string()).collect();
    parts.join("\\")
}

/// Seconds since 1970 as a decimal number with nine places.
pub fn timestamp(time: Timestamp) -> String {
    let nanoseconds = time.nanoseconds();
    if time.seconds < 0 && nanoseconds > 0 {
        // The nanoseconds count forwards: -2 s and 0.5 s make -1.5 s.
        let seconds = (time.seconds + 1).unsigned_abs();
        return format!("-{seconds}.{:09}", 1_000_000_000 - nanoseconds);
    }
    format!("{}.{nanoseconds:09}", time.seconds)
}

/// A time in UTC, such as `2026-02-28T03:04:05.123456789Z`.
pub fn date(time: Timestamp) -> String {
    let (days, seconds) = (time.seconds.div_euclid(86_400), time.seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let nanoseconds = time.nanoseconds();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z")
}

/// Year, month and day of a number of days since 1970, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // From March on, so that a leap day is a year's last; eras are 400 years.
    let days = i128::from(days) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    let narrow = |number: i128| i64::try_from(number).unwrap_or_default();
    (narrow(year), narrow(month), narrow(day))
}

/// The bytes that hexadecimal digits stand for.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| Some((digit(pair[0])? << 4) | digit(pair[1])?)).collect()
}

/// Bytes in hexadecimal.
pub fn hex(data: &[u8]) -> String {
    data.iter().fold(String::with_capacity(2 * data.len()), |mut out, byte| {
        _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_of_bytes() {
        let shown = [0, 999, 1_000, 12_345, 999_999, 1_070_000_000, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.00 kB", "12.3 kB", "999 kB", "1.07 GB", "18446 PB"]);
    }

    #[test]
    fn times() {
        assert_eq!(duration(Duration::from_millis(2_190)), "2.1 s");
        assert_eq!(duration(Duration::from_secs(187)), "3:07");
        assert_eq!(duration(Duration::from_secs(3_723)), "1:02:03");
        assert_eq!(rate(1_000, Duration::from_millis(500)), 2_000);
        assert_eq!(rate(0, Duration::ZERO), 0);
    }

    #[test]
    fn times_before_1970_are_negative_numbers() {
        let text = |seconds, nanoseconds| timestamp(Timestamp::new(seconds, nanoseconds).unwrap());
        assert_eq!(text(1_700_000_000, 123_456_789), "1700000000.123456789");
        assert_eq!(text(0, 5), "0.000000005");
        assert_eq!(text(-1, 0), "-1.000000000");
        assert_eq!(text(-1, 500_000_000), "-0.500000000");
        assert_eq!(text(-2, 500_000_000), "-1.500000000");
        assert_eq!(text(i64::MIN, 1), "-9223372036854775807.999999999");
    }

    #[test]
    fn sentences_are_safe_and_escaped_once() {
        assert_eq!(shown("cannot read a\\xff"), "cannot read a\\xff");
        assert_eq!(shown("a\x1b[2J\nb"), "a\\u{1b}[2J\\nb");
    }

    #[test]
    fn dates_are_in_utc() {
        let text = |seconds, nanoseconds| date(Timestamp::new(seconds, nanoseconds).unwrap());
        assert_eq!(text(0, 5), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(text(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(text(1_767_225_599, 123_456_789), "2025-12-31T23:59:59.123456789Z");
        assert_eq!(text(-1, 500_000_000), "1969-12-31T23:59:59.500000000Z");
        assert_eq!(text(-2_203_891_200, 0), "1900-03-01T00:00:00.000000000Z");
        assert!(text(i64::MAX, 0).ends_with('Z') && text(i64::MIN, 0).ends_with('Z'));
    }

    #[test]
    fn digits_are_grouped() {
        let shown = [0, 999, 1_000, 1_234_567].map(grouped);
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn plurals_and_hex() {
        assert_eq!(from_hex("00fF"), Some(vec![0, 255]));
        assert_eq!((from_hex("0"), from_hex("0x"), from_hex("é")), (None, None, None));
        assert_eq!((plural(1, "file"), plural(0, "file")), ("1 file".into(), "0 files".into()));
        assert_eq!(hex(b"\x00\xff"), "00ff");
    }
}
