//! Parsers of values that several programs take, for `#[arg(value_parser = …)]`.

use std::{net::SocketAddr, time::Duration};

/// An address to listen on, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

/// `127.0.0.1:15000`, `[::]:15020`, or `none`.
///
/// # Errors
/// Saying what would be right.
pub fn listen(text: &str) -> Result<Listen, String> {
    if text == "none" {
        return Ok(Listen(None));
    }
    let address =
        text.parse().map_err(|_| "write IP:PORT, such as 127.0.0.1:15000 or [::]:15000, or none")?;
    Ok(Listen(Some(address)))
}

/// A duration: a number and its unit, such as `250ms`, `10s`, `5m`, `24h`.
///
/// # Errors
/// Saying what would be right.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and its unit: 250ms, 10s, 5m or 24h".to_owned();
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.trim().parse().map_err(|_| wrong())?;
    let (seconds, millis) = match unit {
        "ms" => (None, Some(number)),
        "s" => (Some(number), None),
        "m" => (number.checked_mul(60), None),
        "h" => (number.checked_mul(3600), None),
        _ => return Err(wrong()),
    };
    millis.map(Duration::from_millis).or(seconds.map(Duration::from_secs)).ok_or_else(wrong)
}

/// A size in bytes: a number, with `KiB`, `MiB` or `GiB` where wanted.
///
/// # Errors
/// Saying what would be right.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "write a number of bytes, such as 65536, 64KiB, 4MiB or 1GiB".to_owned();
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        for wrong in ["", "10", "s", "-1s", "1d", "99999999999999999999s", "9999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(bytes("65536"), Ok(65536));
        assert_eq!(bytes("64KiB"), Ok(65536));
        for wrong in ["", "1MB", "KiB", "99999999999GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_listener_is_an_address_or_none() {
        assert_eq!(listen("none"), Ok(Listen(None)));
        assert!(matches!(listen("[::]:1"), Ok(Listen(Some(_)))));
        assert!(listen("15000").is_err());
    }
}
