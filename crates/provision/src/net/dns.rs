//! DNS messages (RFC 1035): as much as a forwarder needs. Names are never followed beyond a question's own bytes.

use std::net::Ipv4Addr;

const HEADER: usize = 12;
const CLASS_IN: u16 = 1;
pub(super) const TYPE_A: u16 = 1;
pub(super) const TYPE_PTR: u16 = 12;
/// Seconds for which a guest may keep what we answer ourselves.
const OWN_TTL: u32 = 60;
const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 253;
/// Most records of an answer that are looked at.
const MAX_RECORDS: usize = 64;
/// A name that points to the question's.
const POINTER_TO_QUESTION: [u8; 2] = [0xc0, HEADER as u8];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseCode {
    Ok = 0,
    ServerFailure = 2,
    NoSuchName = 3,
}

/// A question that can be forwarded or answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Lower case, without a final dot; bytes that are not ASCII are replaced.
    pub(super) name: String,
    pub(super) kind: u16,
    /// Where the question ends in its message.
    end: usize,
}

/// The one question of a query; `None` for anything else.
pub(super) fn question(message: &[u8]) -> Option<Question> {
    let flags = u16_at(message, 2)?;
    let is_query = flags & 0xf800 == 0; // QR and opcode
    if !is_query || u16_at(message, 4)? != 1 {
        return None;
    }
    parse_question(message)
}

fn parse_question(message: &[u8]) -> Option<Question> {
    let mut name = String::new();
    let mut at = HEADER;
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        let label = message.get(at..at + len).filter(|_| len <= MAX_LABEL)?;
        at += len;
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(
            label.iter().map(|b| if b.is_ascii_graphic() { b.to_ascii_lowercase() as char } else { '?' }),
        );
        if name.len() > MAX_NAME {
            return None;
        }
    }
    let kind = u16_at(message, at)?;
    let end = at + 4;
    (u16_at(message, at + 2)? == CLASS_IN).then_some(Question { name, kind, end })
}

/// What we answer ourselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Address(Ipv4Addr),
    Name(String),
}

/// A response to `query` (in which `question` was found) with at most one record.
pub(super) fn response(
    query: &[u8],
    question: &Question,
    code: ResponseCode,
    record: Option<&Record>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(question.end + 64);
    out.extend(&query[..2]);
    let recursion_desired = query[2] & 1;
    out.extend([0x80 | recursion_desired, 0x80 | code as u8]);
    out.extend([0, 1, 0, u8::from(record.is_some()), 0, 0, 0, 0]);
    out.extend(&query[HEADER..question.end]);
    if let Some(record) = record {
        let (kind, data) = match record {
            Record::Address(ip) => (TYPE_A, ip.octets().to_vec()),
            Record::Name(name) => (TYPE_PTR, encode_name(name)),
        };
        out.extend(POINTER_TO_QUESTION);
        out.extend(kind.to_be_bytes());
        out.extend(CLASS_IN.to_be_bytes());
        out.extend(OWN_TTL.to_be_bytes());
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    }
    out
}

fn encode_name(name: &str) -> Vec<u8> {
    let mut out = vec![];
    for label in name.split('.').filter(|label| (1..=MAX_LABEL).contains(&label.len())) {
        out.push(label.len() as u8);
        out.extend(label.bytes());
    }
    out.push(0);
    out
}

/// `response` cut to its question, with the mark that makes the guest ask again over TCP.
pub(super) fn truncated(response: &[u8]) -> Option<Vec<u8>> {
    let question = parse_question(response)?;
    let mut out = response[..question.end].to_vec();
    out[2] |= 0x02;
    out[4..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    Some(out)
}

/// Whether `response` answers `query`: same id, same question.
pub(super) fn answers(response: &[u8], query: &[u8]) -> bool {
    let is_response = response.get(2).is_some_and(|flags| flags & 0x80 != 0);
    match (question(query), parse_question(response)) {
        (Some(asked), Some(answered)) => is_response && response[..2] == query[..2] && asked == answered,
        // A server that cannot read the question sends none back.
        (Some(_), None) => is_response && response.get(..2) == query.get(..2) && response.len() == HEADER,
        _ => false,
    }
}

/// The IPv4 addresses among the answers, whatever name each is of: aliases lead there.
pub(super) fn addresses(response: &[u8]) -> Vec<Ipv4Addr> {
    let mut found = vec![];
    let Some(question) = parse_question(response) else { return found };
    let records = usize::from(u16_at(response, 6).unwrap_or(0)).min(MAX_RECORDS);
    let mut at = question.end;
    for _ in 0..records {
        let Some((kind, data, next)) = record(response, at) else { break };
        if let (TYPE_A, Ok(octets)) = (kind, <[u8; 4]>::try_from(data)) {
            found.push(octets.into());
        }
        at = next;
    }
    found
}

/// Type, data, and where the next record starts.
fn record(message: &[u8], at: usize) -> Option<(u16, &[u8], usize)> {
    let mut at = at;
    loop {
        match *message.get(at)? {
            0 => break at += 1,
            len if len & 0xc0 == 0xc0 => break at += 2,
            len if len & 0xc0 == 0 => at += 1 + usize::from(len),
            _ => return None,
        }
    }
    let kind = u16_at(message, at)?;
    let data = at + 10;
    let end = data + usize::from(u16_at(message, at + 8)?);
    Some((kind, message.get(data..end)?, end))
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
        let mut out = id.to_be_bytes().to_vec();
        out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend(encode_name(name));
        out.extend(kind.to_be_bytes());
        out.extend(CLASS_IN.to_be_bytes());
        out
    }

    #[test]
    fn a_question_and_its_answer() {
        let query = query(0x1234, "Www.Example.org", TYPE_A);
        let asked = question(&query).unwrap();
        assert_eq!((asked.name.as_str(), asked.kind, asked.end), ("www.example.org", TYPE_A, query.len()));
        let ip = Ipv4Addr::new(203, 0, 113, 9);
        let answer = response(&query, &asked, ResponseCode::Ok, Some(&Record::Address(ip)));
        assert_eq!(&answer[..4], [0x12, 0x34, 0x81, 0x80]);
        assert!(answers(&answer, &query));
        assert_eq!(addresses(&answer), [ip]);
        let nothing = response(&query, &asked, ResponseCode::NoSuchName, None);
        assert_eq!((nothing[3] & 15, addresses(&nothing)), (3, vec![]));
        // A response is no question.
        assert_eq!(question(&answer), None);
    }

    #[test]
    fn aliases_lead_to_addresses() {
        let query = query(1, "a.org", TYPE_A);
        let mut answer = response(&query, &question(&query).unwrap(), ResponseCode::Ok, None);
        answer[7] = 3;
        // a.org CNAME b, b A 1.2.3.4, b AAAA (16 bytes)
        answer.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 3, 1, b'b', 0]);
        answer.extend([1, b'b', 0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4]);
        answer.extend([1, b'b', 0, 0, 28, 0, 1, 0, 0, 0, 9, 0, 16]);
        answer.extend([0; 16]);
        assert_eq!(addresses(&answer), [Ipv4Addr::new(1, 2, 3, 4)]);
        let short = truncated(&answer).unwrap();
        assert_eq!((short.len(), short[2] & 2, addresses(&short)), (query.len(), 2, vec![]));
        assert!(answers(&short, &query));
    }

    #[test]
    fn answers_to_other_questions_do_not_count() {
        let asked = query(1, "a.org", TYPE_A);
        let answer = |q: &[u8]| response(q, &question(q).unwrap(), ResponseCode::Ok, None);
        assert!(answers(&answer(&asked), &asked));
        for other in [query(2, "a.org", TYPE_A), query(1, "b.org", TYPE_A), query(1, "a.org", TYPE_PTR)] {
            assert!(!answers(&answer(&other), &asked));
        }
        assert!(!answers(&asked, &asked));
    }

    #[test]
    fn names_that_are_too_long_or_point_away() {
        assert_eq!(question(&query(1, &"abcdefgh.".repeat(40), 1)), None);
        let mut pointing = query(1, "a", 1);
        pointing[HEADER] = 0xc0;
        assert_eq!(question(&pointing), None);
    }

    proptest! {
        #[test]
        fn no_message_panics(id in any::<u16>(), tail in proptest::collection::vec(any::<u8>(), 0..100), flags in any::<u8>()) {
            let mut message = query(id, "a.org", 1);
            message[2] = flags;
            message[7] = 9;
            message.extend(&tail);
            for message in [&message[..], &tail[..]] {
                let _ = (addresses(message), truncated(message), answers(message, message));
                if let Some(asked) = question(message) {
                    let _ = response(message, &asked, ResponseCode::ServerFailure, None);
                }
            }
        }
    }
}
