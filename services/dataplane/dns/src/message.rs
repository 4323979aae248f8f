//! Messages of DNS: what is asked, what the answer says, and answers that say that there is none.
//!
//! Reads bytes from workloads and from resolvers alike. Of an answer only what concerns the question is read:
//! records that are not understood make nothing known and are the asker's business. Done here, since of all that
//! DNS is only this little is needed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longer messages are not read: far above what EDNS clients ask for by UDP (1,232 bytes, some 4,096).
pub const MAX_MESSAGE: usize = 8_192;
/// Names that stand for each other in one answer; a chain that is longer is not followed.
const MAX_CHAIN: usize = 16;
/// Where the header ends.
const HEADER: usize = 12;
/// No name is longer (RFC 1035, 2.3.4).
const MAX_NAME: usize = 255;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const IXFR: u16 = 251;
const AXFR: u16 = 252;
/// The internet's class.
const IN: u16 = 1;

/// Types by name, as flows show them.
const KINDS: [(u16, &str); 19] = [
    (A, "A"),
    (2, "NS"),
    (CNAME, "CNAME"),
    (6, "SOA"),
    (12, "PTR"),
    (15, "MX"),
    (16, "TXT"),
    (AAAA, "AAAA"),
    (33, "SRV"),
    (35, "NAPTR"),
    (39, "DNAME"),
    (41, "OPT"),
    (43, "DS"),
    (46, "RRSIG"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (IXFR, "IXFR"),
    (AXFR, "AXFR"),
    (255, "ANY"),
];

/// Response codes, as far as they are given here.
const FORMAT_ERROR: u8 = 1;
const SERVER_FAILURE: u8 = 2;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;

/// In the third byte of the header.
const IS_ANSWER: u8 = 0x80;
const OPERATION: u8 = 0x78;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
/// In the fourth.
const RECURSION_AVAILABLE: u8 = 0x80;
const CODE: u8 = 0x0f;

/// What a workload asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The message's number.
    pub id: u16,
    /// The name, in lower case and without the dot at the end. Bytes that names of hosts do not have are written
    /// as `\\` and three digits, so that no rule means them.
    pub name: String,
    kind: u16,
    class: u16,
    recursion: bool,
    /// As it was sent: some clients vary the letters' case and compare.
    raw: Vec<u8>,
}

/// Why a message is not a question that can be asked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// Nothing can be answered to it.
    Silent,
    /// It is answered so.
    Answered(Vec<u8>),
}

/// What a resolver answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The response code; 0 when it is fine.
    pub code: u16,
    /// The addresses that the name has, by whatever names stand between.
    pub addresses: Vec<IpAddr>,
    /// For how many seconds all of it holds.
    pub ttl: u32,
    /// The names that the question's stands for, in order.
    pub aliases: Vec<String>,
    /// Types of the records in the answer.
    pub kinds: Vec<String>,
    /// There is more; to be asked for by TCP.
    pub truncated: bool,
}

/// An answer that is none to the question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the resolver's message is no answer to the question")]
pub struct NotAnAnswer;

/// A record of an answer, as far as it is read.
struct Record<'m> {
    name: String,
    kind: u16,
    class: u16,
    ttl: u32,
    data: &'m [u8],
    /// Where the data begins in the message.
    at: usize,
}

/// Reads a message from its beginning; `None` wherever it ends too early or says what can not be.
#[derive(Debug, Clone, Copy)]
struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl<'m> Reader<'m> {
    fn new(message: &'m [u8]) -> Self {
        Self { message, at: 0 }
    }

    fn take(&mut self, length: usize) -> Option<&'m [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.message.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn short(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn long(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A name. What it points to must lie before it, and what that points to before that: it ends.
    fn name(&mut self) -> Option<String> {
        let mut text = String::new();
        let (mut length, mut start) = (0, self.at);
        // Once it points somewhere, this reader goes on behind the first pointer.
        let mut elsewhere: Option<Self> = None;
        loop {
            let reader = elsewhere.as_mut().unwrap_or(self);
            let size = reader.byte()?;
            match size & 0xc0 {
                0 if size == 0 => return Some(text),
                0 => {
                    let label = reader.take(size.into())?;
                    length += label.len() + 1;
                    if length >= MAX_NAME {
                        return None;
                    }
                    if !text.is_empty() {
                        text.push('.');
                    }
                    push_label(&mut text, label);
                }
                0xc0 => {
                    let low = reader.byte()?;
                    let to = usize::from(size & 0x3f) << 8 | usize::from(low);
                    // The header is no name: answered anew, it would be another one.
                    if to >= start || to < HEADER {
                        return None;
                    }
                    start = to;
                    elsewhere = Some(Self {
                        message: self.message,
                        at: to,
                    });
                }
                // Never given a meaning that lasted.
                _ => return None,
            }
        }
    }

    fn record(&mut self) -> Option<Record<'m>> {
        let name = self.name()?;
        let (kind, class, ttl) = (self.short()?, self.short()?, self.long()?);
        let length = self.short()?;
        let at = self.at;
        Some(Record {
            name,
            kind,
            class,
            ttl,
            data: self.take(length.into())?,
            at,
        })
    }
}

fn push_label(text: &mut String, label: &[u8]) {
    use std::fmt::Write;
    for b in label {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_') {
            text.push(b.to_ascii_lowercase().into());
        } else {
            // Writing to a String can not fail.
            let _ = write!(text, "\\{b:03}");
        }
    }
}

fn kind_name(kind: u16) -> String {
    let known = KINDS.iter().find(|(number, _)| *number == kind);
    known.map_or_else(|| format!("TYPE{kind}"), |(_, name)| (*name).to_owned())
}

/// An answer without records: `flags` as they came, with the question where it could be read.
fn failure(id: u16, flags: u8, code: u8, question: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + question.len());
    bytes.extend(id.to_be_bytes());
    bytes.push(IS_ANSWER | flags & (OPERATION | RECURSION_DESIRED));
    bytes.push(RECURSION_AVAILABLE | code);
    bytes.extend([0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
    bytes.extend(question);
    bytes
}

impl Question {
    /// Reads a message of a workload.
    pub fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        if bytes.len() > MAX_MESSAGE {
            return Err(Unreadable::Silent);
        }
        let mut reader = Reader::new(bytes);
        let header = |reader: &mut Reader<'_>| {
            let (id, flags) = (reader.short()?, reader.byte()?);
            reader.byte()?;
            let questions = reader.short()?;
            reader.take(6)?;
            Some((id, flags, questions))
        };
        let (id, flags, questions) = header(&mut reader).ok_or(Unreadable::Silent)?;
        // Answers to answers would go on for ever.
        if flags & IS_ANSWER != 0 {
            return Err(Unreadable::Silent);
        }
        if flags & OPERATION != 0 {
            return Err(Unreadable::Answered(failure(id, flags, NOT_IMPLEMENTED, &[])));
        }
        let asked = |reader: &mut Reader<'_>| Some((reader.name()?, reader.short()?, reader.short()?));
        let Some((name, kind, class)) = asked(&mut reader).filter(|_| questions == 1) else {
            return Err(Unreadable::Answered(failure(id, flags, FORMAT_ERROR, &[])));
        };
        let question = Self {
            id,
            name,
            kind,
            class,
            recursion: flags & RECURSION_DESIRED != 0,
            raw: bytes[HEADER..reader.at].to_vec(),
        };
        // A transfer's answer is many messages, and names nobody's addresses that was asked for.
        if matches!(kind, AXFR | IXFR) {
            return Err(Unreadable::Answered(question.failed(NOT_IMPLEMENTED)));
        }
        Ok(question)
    }

    /// What of the name is asked for: `A`, `AAAA`, `SRV`, …
    pub fn kind(&self) -> String {
        kind_name(self.kind)
    }

    /// The answer that policy does not let it be asked.
    pub fn refused(&self) -> Vec<u8> {
        self.failed(REFUSED)
    }

    /// The answer that the resolver can not be asked.
    pub fn unanswered(&self) -> Vec<u8> {
        self.failed(SERVER_FAILURE)
    }

    fn failed(&self, code: u8) -> Vec<u8> {
        let flags = if self.recursion { RECURSION_DESIRED } else { 0 };
        failure(self.id, flags, code, &self.raw)
    }

    /// Reads what a resolver says; `id` is the number it was asked with.
    pub fn read_answer(&self, id: u16, bytes: &[u8]) -> Result<Answer, NotAnAnswer> {
        let mut reader = Reader::new(bytes);
        let head = |reader: &mut Reader<'_>| {
            let found = reader.short()?;
            let (flags, more) = (reader.byte()?, reader.byte()?);
            let (questions, records) = (reader.short()?, reader.short()?);
            reader.take(4)?;
            let same = found == id
                && flags & IS_ANSWER != 0
                && flags & OPERATION == 0
                && questions == 1
                && reader.name()? == self.name
                && reader.short()? == self.kind
                && reader.short()? == self.class;
            same.then_some((flags, more, records))
        };
        let (flags, more, count) = head(&mut reader).ok_or(NotAnAnswer)?;
        let mut answer = Answer {
            code: (more & CODE).into(),
            truncated: flags & TRUNCATED != 0,
            ..Answer::default()
        };
        // Each takes some bytes: there are no more than the message has room for. One that can not be read makes
        // nothing known.
        let records: Option<Vec<Record<'_>>> = (0..count).map(|_| reader.record()).collect();
        if let Some(records) = records {
            self.follow(bytes, &records, &mut answer);
        }
        Ok(answer)
    }

    /// From the name asked for by the names it stands for to addresses. What is said of other names, nobody asked
    /// for.
    fn follow(&self, message: &[u8], records: &[Record<'_>], answer: &mut Answer) {
        answer.kinds = records.iter().map(|r| kind_name(r.kind)).collect();
        answer.kinds.sort_unstable();
        answer.kinds.dedup();
        if answer.code != 0 {
            return;
        }
        let mut name = self.name.clone();
        let mut ttl = u32::MAX;
        for _ in 0..=MAX_CHAIN {
            let own = || records.iter().filter(|r| r.class == IN && r.name == name);
            for record in own() {
                let address: IpAddr = match (record.kind, record.data.len()) {
                    (A, 4) => <[u8; 4]>::try_from(record.data)
                        .map(Ipv4Addr::from)
                        .map(IpAddr::from),
                    (AAAA, 16) => <[u8; 16]>::try_from(record.data)
                        .map(Ipv6Addr::from)
                        .map(IpAddr::from),
                    _ => continue,
                }
                .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                ttl = ttl.min(record.ttl);
                answer.addresses.push(address);
            }
            let alias = own().find(|r| r.kind == CNAME).and_then(|r| {
                let mut reader = Reader { message, at: r.at };
                Some((reader.name()?, r.ttl))
            });
            let Some((next, own_ttl)) = alias.filter(|(next, _)| *next != self.name) else {
                break;
            };
            if answer.aliases.contains(&next) {
                break;
            }
            ttl = ttl.min(own_ttl);
            answer.aliases.push(next.clone());
            name = next;
        }
        answer.addresses.sort_unstable();
        answer.addresses.dedup();
        answer.ttl = if ttl == u32::MAX { 0 } else { ttl };
    }
}

/// The number of a message; `None` when it is too short to have one.
pub fn id(bytes: &[u8]) -> Option<u16> {
    Reader::new(bytes).short()
}

/// Gives a message another number.
pub fn set_id(bytes: &mut [u8], id: u16) {
    if let Some(place) = bytes.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SRV: u16 = 33;

    /// Type and data of a record.
    pub(crate) type Data = (u16, Vec<u8>);

    fn name(text: &str) -> Vec<u8> {
        let labels = text.trim_end_matches('.').split('.').filter(|l| !l.is_empty());
        let mut bytes: Vec<u8> = labels
            .flat_map(|l| [&[l.len() as u8][..], l.as_bytes()].concat())
            .collect();
        bytes.push(0);
        bytes
    }

    fn message(flags: u8, answers: u16, asked: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0, 7, flags, 0, 0, 1];
        bytes.extend(answers.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(name(asked));
        bytes.extend(kind.to_be_bytes());
        bytes.extend(IN.to_be_bytes());
        bytes
    }

    pub(crate) fn ask(asked: &str, kind: u16) -> Vec<u8> {
        message(RECURSION_DESIRED, 0, asked, kind)
    }

    pub(crate) fn answer(asked: &str, records: &[(&str, u32, Data)]) -> Vec<u8> {
        let mut bytes = message(IS_ANSWER, records.len() as u16, asked, A);
        for (owner, ttl, (kind, data)) in records {
            // As servers do it: a pointer to the question.
            let owner = if *owner == asked {
                vec![0xc0, 12]
            } else {
                name(owner)
            };
            bytes.extend(owner);
            bytes.extend(kind.to_be_bytes());
            bytes.extend(IN.to_be_bytes());
            bytes.extend(ttl.to_be_bytes());
            bytes.extend((data.len() as u16).to_be_bytes());
            bytes.extend(data);
        }
        bytes
    }

    pub(crate) fn alias(to: &str) -> Data {
        (CNAME, name(to))
    }

    pub(crate) fn v4(last: u8) -> Data {
        (A, vec![192, 0, 2, last])
    }

    fn v6(text: &str) -> Data {
        (AAAA, text.parse::<Ipv6Addr>().unwrap().octets().to_vec())
    }

    fn code(bytes: &[u8]) -> u8 {
        bytes[3] & CODE
    }

    #[test]
    fn a_question_is_read_and_refused_in_its_own_words() {
        let question = Question::read(&ask("API.Example.com.", A)).unwrap();
        assert_eq!(
            (question.name.as_str(), question.kind(), question.id),
            ("api.example.com", "A".to_owned(), 7)
        );
        for (failure, expected) in [
            (question.refused(), REFUSED),
            (question.unanswered(), SERVER_FAILURE),
        ] {
            assert_eq!((id(&failure), code(&failure)), (Some(7), expected));
            assert_eq!(
                failure[2] & (IS_ANSWER | RECURSION_DESIRED),
                IS_ANSWER | RECURSION_DESIRED
            );
            // With the letters that were sent: some clients vary them and compare.
            assert!(failure.ends_with(&ask("API.Example.com.", A)[HEADER..]));
        }
        assert_eq!(Question::read(&ask(".", 2)).unwrap().name, "");
    }

    #[test]
    fn what_is_no_question_is_answered_or_not() {
        let good = ask("a.test.", A);
        let code = |bytes: &[u8]| match Question::read(bytes) {
            Err(Unreadable::Answered(bytes)) => Some(code(&bytes)),
            Err(Unreadable::Silent) => None,
            Ok(question) => panic!("{question:?}"),
        };
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        assert_eq!(code(&good[..11]), None);
        assert_eq!(code(&changed(2, 0x81)), None, "an answer");
        assert_eq!(code(&changed(2, 0x28)), Some(NOT_IMPLEMENTED), "an update");
        assert_eq!(code(&changed(5, 2)), Some(FORMAT_ERROR), "two questions");
        assert_eq!(code(&changed(4, 255)), Some(FORMAT_ERROR), "65,281 questions");
        assert_eq!(
            code(&changed(12, 0xc0)),
            Some(FORMAT_ERROR),
            "a pointer to itself"
        );
        assert_eq!(code(&good[..good.len() - 3]), Some(FORMAT_ERROR));
        assert_eq!(code(&ask("a.test.", AXFR)), Some(NOT_IMPLEMENTED));
        let long = [good.clone(), vec![0; MAX_MESSAGE]].concat();
        assert_eq!(code(&long), None);
    }

    #[test]
    fn an_answer_is_followed_by_its_aliases_and_no_further() {
        let question = Question::read(&ask("www.test.", A)).unwrap();
        let bytes = answer(
            "www.test.",
            &[
                ("other.test.", 1, v4(9)),
                ("cdn.test.", 60, alias("edge.test.")),
                ("www.test.", 300, alias("cdn.test.")),
                ("edge.test.", 30, v4(1)),
                ("edge.test.", 90, v4(2)),
                ("edge.test.", 90, v6("2001:db8::1")),
            ],
        );
        let answer = question.read_answer(7, &bytes).unwrap();
        let addresses: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        assert_eq!((answer.ttl, answer.code), (30, 0));
        assert_eq!(answer.aliases, ["cdn.test", "edge.test"]);
        assert_eq!(answer.kinds, ["A", "AAAA", "CNAME"]);
    }

    #[test]
    fn aliases_in_a_circle_end() {
        let question = Question::read(&ask("a.test.", A)).unwrap();
        let records = [("a.test.", 1, alias("b.test.")), ("b.test.", 1, alias("b.test."))];
        let found = question.read_answer(7, &answer("a.test.", &records)).unwrap();
        assert!(found.addresses.is_empty() && found.aliases == ["b.test"]);
        let records = [("a.test.", 1, alias("a.test."))];
        let found = question.read_answer(7, &answer("a.test.", &records)).unwrap();
        assert!(found.addresses.is_empty());
        let named = |n: usize| format!("n{n}.test.");
        let chain: Vec<(String, Data)> = (0..40)
            .map(|n| {
                (
                    if n == 0 { "a.test.".into() } else { named(n) },
                    alias(&named(n + 1)),
                )
            })
            .chain([(named(40), v4(1))])
            .collect();
        let chain: Vec<_> = chain.iter().map(|(n, d)| (n.as_str(), 1, d.clone())).collect();
        assert!(
            question
                .read_answer(7, &answer("a.test.", &chain))
                .unwrap()
                .addresses
                .is_empty()
        );
    }

    #[test]
    fn what_answers_something_else_is_no_answer() {
        let question = Question::read(&ask("a.test.", A)).unwrap();
        let good = answer("a.test.", &[("a.test.", 1, v4(1))]);
        assert_eq!(question.read_answer(7, &good).unwrap().addresses.len(), 1);
        assert_eq!(question.read_answer(8, &good), Err(NotAnAnswer), "another number");
        assert_eq!(
            question.read_answer(7, &ask("a.test.", A)),
            Err(NotAnAnswer),
            "a question"
        );
        let other = answer("b.test.", &[("a.test.", 1, v4(1))]);
        assert_eq!(question.read_answer(7, &other), Err(NotAnAnswer), "another name");
        let of_kind = Question::read(&ask("a.test.", AAAA)).unwrap();
        assert_eq!(of_kind.read_answer(7, &good), Err(NotAnAnswer), "another type");
        // Cut off in its records: it is an answer, of which nothing is believed.
        let cut = question.read_answer(7, &good[..good.len() - 2]).unwrap();
        assert!(cut.addresses.is_empty());
    }

    #[test]
    fn what_names_of_hosts_do_not_have_is_written_otherwise() {
        let mut bytes = ask("a.b.test.", A);
        bytes[13] = b'.';
        assert_eq!(Question::read(&bytes).unwrap().name, "\\046.b.test");
        let label = "x".repeat(63);
        let long = [&*label, &*label, &*label, &label[..61]].join(".");
        assert_eq!(Question::read(&ask(&long, A)).unwrap().name.len(), 253);
        assert!(Question::read(&ask(&format!("x{long}"), A)).is_err(), "256 bytes");
        assert_eq!(kind_name(65_280), "TYPE65280");
    }

    #[test]
    fn a_failure_names_no_addresses() {
        let question = Question::read(&ask("a.test.", A)).unwrap();
        let mut bytes = answer("a.test.", &[("a.test.", 1, v4(1))]);
        bytes[3] |= 3;
        let found = question.read_answer(7, &bytes).unwrap();
        assert_eq!((found.code, found.addresses.len()), (3, 0));
    }
}
