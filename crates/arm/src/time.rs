//! Moments on the wire: each provider family writes them its own way (REFERENCE.md 5.1).

use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};

use crate::error::ArmError;

/// Compute: seven digits and an offset, `2025-01-07T05:52:23.9501544+00:00`.
pub fn compute(moment: DateTime<Utc>) -> String {
    digits(moment, "+00:00")
}

/// Image builder: seven digits and `Z`, `2024-05-15T09:24:53.5640498Z`.
pub fn image_builder(moment: DateTime<Utc>) -> String {
    digits(moment, "Z")
}

/// Everything else: milliseconds and `Z`.
pub fn plain(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn digits(moment: DateTime<Utc>, zone: &str) -> String {
    let nanos = moment.trunc_subsecs(7).timestamp_subsec_nanos();
    format!("{}.{:07}{zone}", moment.format("%Y-%m-%dT%H:%M:%S"), nanos / 100)
}

/// Reads a date of a request: RFC 3339, or a plain date or a time without offset, which mean UTC.
///
/// # Errors
/// RULES.md 2D, 11.
pub fn parse(text: &str, property: &str) -> Result<DateTime<Utc>, ArmError> {
    let with_offset = DateTime::parse_from_rfc3339(text).map(|moment| moment.with_timezone(&Utc));
    let naive = || {
        let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d")
            .map(|date| date.and_time(chrono::NaiveTime::MIN));
        date.or_else(|_| chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f"))
            .map(|naive| naive.and_utc())
    };
    with_offset.or_else(|_| naive()).map_err(|_| {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
        ArmError::invalid_parameter(
            &format!("properties.{property}"),
            format!("Could not convert string to DateTimeOffset: {shown}. Path 'properties.{property}'"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_write_their_own_way() {
        let moment = DateTime::from_timestamp(1_736_229_143, 950_154_499).unwrap();
        assert_eq!(compute(moment), "2025-01-07T05:52:23.9501544+00:00");
        assert_eq!(image_builder(moment), "2025-01-07T05:52:23.9501544Z");
    }

    #[test]
    fn dates_are_read_in_the_forms_that_clients_send() {
        for text in ["2030-01-02T00:00:00Z", "2030-01-02", "2030-01-02T01:00:00+01:00", "2030-01-02T00:00:00"]
        {
            assert_eq!(plain(parse(text, "endOfLifeDate").unwrap()), "2030-01-02T00:00:00.000Z", "{text}");
        }
        assert_eq!(
            parse("soon", "endOfLifeDate").unwrap_err().message,
            "Could not convert string to DateTimeOffset: soon. Path 'properties.endOfLifeDate'"
        );
    }
}
