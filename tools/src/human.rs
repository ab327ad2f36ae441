//! Sizes, times, durations and names as people read and type them. Pure; JSON has the plain figures instead.
//!
//! Times are UTC everywhere, so that two hosts' listings agree.

use std::time::Duration;

use store::Time;

const SECONDS_PER_DAY: i64 = 86_400;

/// `1.5 GiB`; exact below 1 KiB.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `3.2x`: how many times `stored` fits into `plain`; `-` when nothing is stored.
pub(crate) fn ratio(plain: u64, stored: u64) -> String {
    if stored == 0 { "-".to_owned() } else { format!("{:.2}x", plain as f64 / stored as f64) }
}

/// `2026-11-22 07:34:05`, UTC.
pub(crate) fn time(time: Time) -> String {
    let (year, month, day) = civil_date(time.seconds.div_euclid(SECONDS_PER_DAY));
    let second = time.seconds.rem_euclid(SECONDS_PER_DAY);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// `2026-11-22T07:34:05.000000001Z`, for JSON.
pub(crate) fn rfc3339(time_utc: Time) -> String {
    let text = time(time_utc).replacen(' ', "T", 1);
    format!("{text}.{:09}Z", time_utc.nanos)
}

/// Year, month, day of a number of days since 1970-01-01 (the proleptic Gregorian calendar, in eras of 400 years).
fn civil_date(days: i64) -> (i64, u32, u32) {
    const DAYS_PER_ERA: i64 = 146_097;
    let shifted = days.saturating_add(719_468);
    let era = shifted.div_euclid(DAYS_PER_ERA);
    let day_of_era = shifted.rem_euclid(DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// `30d`, `12h`, `1y6m`: numbers with the units h, d, w, m (30 days), y (365 days).
pub(crate) fn parse_duration(typed: &str) -> Result<Duration, String> {
    let refuse = || format!("`{typed}` is no duration; write 12h, 30d, 2w, 6m, 1y or several in a row");
    let mut hours = 0_u64;
    let mut number = None;
    for character in typed.chars() {
        if let Some(digit) = character.to_digit(10) {
            let value = number.unwrap_or(0_u64);
            number =
                Some(value.checked_mul(10).and_then(|n| n.checked_add(digit.into())).ok_or_else(refuse)?);
            continue;
        }
        let unit_hours = match character {
            'h' => 1,
            'd' => 24,
            'w' => 7 * 24,
            'm' => 30 * 24,
            'y' => 365 * 24,
            _ => return Err(refuse()),
        };
        let count = number.take().ok_or_else(refuse)?;
        hours = count.checked_mul(unit_hours).and_then(|n| hours.checked_add(n)).ok_or_else(refuse)?;
    }
    let seconds = hours.checked_mul(3600).filter(|seconds| *seconds > 0);
    match (number, seconds) {
        (None, Some(seconds)) => Ok(Duration::from_secs(seconds)),
        _ => Err(refuse()),
    }
}

/// The forms of a size, for messages.
pub(crate) const SIZE_FORMS: &str =
    "a number of bytes, or digits and one of K, M, G, T, Ki, Mi, Gi, Ti as in 500M or 2Gi";

/// The message for text that is not a size.
pub(crate) fn no_size(typed: &str) -> String {
    format!("`{typed}` is not a size; write {SIZE_FORMS}")
}

/// Reads a size in bytes: digits, and `K`, `M`, `G`, `T` for powers of 1000, `Ki`, `Mi`, `Gi`, `Ti` for powers of 1024.
///
/// # Errors
/// The text and the forms that are accepted.
pub(crate) fn parse_size(typed: &str) -> Result<u64, String> {
    let digits = typed.trim_end_matches(|sign: char| !sign.is_ascii_digit());
    let unit = typed[digits.len()..].trim_end_matches('B');
    let (base, letter) = match unit.strip_suffix('i') {
        Some(letter) => (1024u64, letter),
        None => (1000, unit),
    };
    let power = match letter {
        "" if base == 1000 => Some(0),
        "K" | "k" => Some(1),
        "M" => Some(2),
        "G" => Some(3),
        "T" => Some(4),
        _ => None,
    };
    let bytes = |power| digits.parse::<u64>().ok()?.checked_mul(base.pow(power));
    power.and_then(bytes).ok_or_else(|| no_size(typed))
}

/// Reads a rate in bytes a second, which is not 0.
///
/// # Errors
/// The problem with it.
pub(crate) fn parse_rate(typed: &str) -> Result<std::num::NonZeroU64, String> {
    std::num::NonZeroU64::new(parse_size(typed)?).ok_or_else(|| "a rate of 0 moves nothing".to_owned())
}

/// A text of several lines for a terminal: quoted parts cannot move the cursor or change colours.
pub(crate) fn lines(text: &str) -> String {
    let escaped = |character: char| match character {
        '\n' => character.to_string(),
        control if control.is_control() => control.escape_default().to_string(),
        plain => plain.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// A file name or path for a terminal: control characters, backslashes and bytes that are not UTF-8 are escaped, so
/// that a name can neither move the cursor nor look like two lines.
pub(crate) fn name(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for character in part.valid().chars() {
            match character {
                '\\' => shown.push_str("\\\\"),
                plain if !plain.is_control() => shown.push(plain),
                control => shown.push_str(&control.escape_default().to_string()),
            }
        }
        for byte in part.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

/// `drwxr-xr-x`: kind letter and permission bits, as ls writes them.
pub(crate) fn mode(kind: char, bits: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(kind);
    for (shift, special, set) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let triple = bits >> shift & 0o7;
        text.push(if triple & 4 != 0 { 'r' } else { '-' });
        text.push(if triple & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & special != 0, triple & 1 != 0) {
            (true, true) => set,
            (true, false) => set.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time { seconds, nanos: 7 }
    }

    #[test]
    fn sizes_are_read() {
        for (typed, bytes) in [
            ("0", 0),
            ("12", 12),
            ("500M", 500_000_000),
            ("2Gi", 2 << 30),
            ("1KiB", 1024),
            ("3TB", 3_000_000_000_000),
        ] {
            assert_eq!(parse_size(typed), Ok(bytes), "{typed}");
        }
        for bad in ["", "M", "1.5G", "-1", "1X", "12i", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert!(parse_rate("0").is_err());
    }

    #[test]
    fn sizes_step_by_1024() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn times_follow_the_calendar() {
        assert_eq!(time(at(0)), "1970-01-01 00:00:00");
        assert_eq!(time(at(951_782_400)), "2000-02-29 00:00:00");
        assert_eq!(time(at(-1)), "1969-12-31 23:59:59");
        assert_eq!(rfc3339(at(1_795_332_845)), "2026-11-22T07:34:05.000000007Z");
        time(at(i64::MAX));
        time(at(i64::MIN));
    }

    #[test]
    fn durations_add_up_and_refuse_nonsense() {
        assert_eq!(parse_duration("1d12h").unwrap(), Duration::from_secs(36 * 3600));
        assert_eq!(parse_duration("1y6m").unwrap(), Duration::from_secs((365 + 180) * 86_400));
        for wrong in ["", "d", "3", "3x", "1d2", "0d", "99999999999999999999y", "9999999999999999y"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(name("plain \u{e4}".as_bytes()), "plain \u{e4}");
        assert_eq!(name(b"a\x1b[2Jb\n\\\xff"), "a\\u{1b}[2Jb\\n\\\\\\xff");
    }

    #[test]
    fn modes_look_as_in_ls() {
        assert_eq!(mode('d', 0o1777), "drwxrwxrwt");
        assert_eq!(mode('-', 0o4640), "-rwSr-----");
    }
}
