//! Points in time: Unix seconds or ISO 8601 dates.

use super::cell::{Cell, clip};

/// Values from here on cannot be seconds of our days; they are milliseconds.
const MILLISECONDS_FROM: i64 = 100_000_000_000;

/// Unix time as written: whole seconds (or milliseconds), a number with a fraction, or an ISO 8601 date or time.
pub(super) fn instant(cell: &Cell, column: &str) -> Result<i64, String> {
    let found = match cell {
        Cell::Int(n) => Some(*n),
        Cell::Float(x) if x.is_finite() && x.abs() < 9e15 => Some(x.floor() as i64),
        Cell::Text(s) => {
            let s = s.trim();
            let number = s.parse::<i64>().ok().or_else(|| {
                let x = s.parse::<f64>().ok()?;
                (x.is_finite() && x.abs() < 9e15).then(|| x.floor() as i64)
            });
            number.or_else(|| iso_seconds(s))
        }
        Cell::Null => return Err(format!("`{column}` is missing")),
        _ => None,
    };
    found.ok_or_else(|| {
        format!("`{column}` is `{}`; expected Unix seconds or a date like 2024-05-31", clip(&cell.text()))
    })
}

/// Whether times are in milliseconds; mixed units are refused with the evidence.
pub(super) fn in_milliseconds(times: impl Iterator<Item = i64>) -> Result<bool, String> {
    let (mut seconds, mut milliseconds) = (None, None);
    for time in times {
        if time >= MILLISECONDS_FROM {
            milliseconds.get_or_insert(time);
        } else if time >= MILLISECONDS_FROM / 1000 {
            seconds.get_or_insert(time);
        }
    }
    match (seconds, milliseconds) {
        (Some(s), Some(ms)) => Err(format!("times in mixed units: {s} looks like seconds, {ms} like milliseconds")),
        (_, ms) => Ok(ms.is_some()),
    }
}

/// Seconds since 1970 of `YYYY-MM-DD`, optionally followed by `T` or a blank, `HH:MM[:SS[.fraction]]` and `Z` or `±HH:MM`.
fn iso_seconds(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let mut parts = date.split('-');
    let (year, month, day) = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    if parts.next().is_some() || day < 1 || day > days_in(year, month)? {
        return None;
    }
    let midnight = days_since_1970(year, month, day) * 86_400;
    let Some(clock) = rest.strip_prefix(['T', 't', ' ']) else {
        return rest.is_empty().then_some(midnight);
    };
    let at = clock.find(['Z', 'z', '+', '-']).unwrap_or(clock.len());
    let (clock, zone) = clock.split_at(at);
    let clock = clock.trim_end();
    let clock = match clock.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => {
            fraction.bytes().all(|b| b.is_ascii_digit()).then_some(whole)?
        }
        Some(_) => return None,
        None => clock,
    };
    let mut parts = clock.split(':');
    let (hour, minute) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let second = parts.next().map_or(Some(0), |s| number(s, 2))?;
    if parts.next().is_some() || hour > 24 || minute > 59 || second > 60 {
        return None;
    }
    Some(midnight + hour * 3600 + minute * 60 + second - zone_seconds(zone)?)
}

fn zone_seconds(zone: &str) -> Option<i64> {
    if zone.is_empty() || zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, clock) =
        if let Some(clock) = zone.strip_prefix('+') { (1, clock) } else { (-1, zone.strip_prefix('-')?) };
    let (hours, minutes) = clock.split_once(':').or_else(|| clock.split_at_checked(2))?;
    let minutes = if minutes.is_empty() { 0 } else { number(minutes, 2)? };
    Some(sign * (number(hours, 2)? * 3600 + minutes * 60))
}

fn number(text: &str, digits: usize) -> Option<i64> {
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

fn days_in(year: i64, month: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => Some(31),
        4 | 6 | 9 | 11 => Some(30),
        2 => Some(28 + i64::from(leap)),
        _ => None,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar; years are counted from March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> Result<i64, String> {
        instant(&Cell::Text(s.to_owned()), "timestamp")
    }

    #[test]
    fn dates_become_unix_seconds() {
        for (written, seconds) in [
            ("1970-01-01", 0),
            ("1969-12-31", -86_400),
            ("2002-06-12", 1_023_840_000),
            ("2014-07-23", 1_406_073_600),
            ("2000-02-29T12:00:01Z", 951_825_601),
            ("2014-07-23 02:00:00.25+02:00", 1_406_073_600),
            ("2014-07-22T22:00-0200", 1_406_073_600),
            ("1406073600", 1_406_073_600),
            ("1406073600.9", 1_406_073_600),
            ("-5", -5),
        ] {
            assert_eq!(text(written), Ok(seconds), "{written}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "soon",
            "2014-02-30",
            "2014-13-01",
            "2014-7-23",
            "2014-07-23T",
            "2014-07-23T25:00",
            "inf",
            "1e300",
            "2014-07-23T10:00:00.x",
            "23é4-07-23",
        ] {
            assert!(text(bad).is_err(), "{bad}");
        }
        assert!(instant(&Cell::Null, "timestamp").unwrap_err().contains("missing"));
    }

    #[test]
    fn mixed_units_are_refused_with_the_evidence() {
        assert_eq!(in_milliseconds([1, 1_406_073_600].into_iter()), Ok(false));
        assert_eq!(in_milliseconds([1_406_073_600_000].into_iter()), Ok(true));
        let text = in_milliseconds([1_406_073_600, 1_406_073_600_000].into_iter()).unwrap_err();
        assert!(text.contains("1406073600 ") && text.contains("1406073600000"), "{text}");
    }
}
