//! DNS messages (RFC 1035, EDNS by RFC 6891), as far as an answer of ours needs them.
//!
//! A query that is of the plainest kind is read and can be answered; whatever is anything else is nobody's
//! business here: its bytes go on as they are, and so do those that come back. Which names are ours is not
//! known here, and nothing here does I/O.

use std::{net::IpAddr, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata},
};

/// The shortest message there is: a header.
const HEADER: usize = 12;

/// What a client without EDNS takes over UDP (RFC 1035 §4.2.1).
const PLAIN_PAYLOAD: u16 = 512;

/// What we offer to take, and the most that we send over UDP whatever a client offers: larger ones would be
/// cut into fragments on common links, were they to cross any (RFC 9715).
const OUR_PAYLOAD: u16 = 1232;

/// For how long an answer of ours may be kept.
pub(crate) const TTL: Duration = Duration::from_secs(30);

/// How many records of an answer are read: more addresses than a name has any use for.
const MOST_RECORDS: usize = 64;

/// What a question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    A,
    Aaaa,
    /// How to speak to a name (RFC 9460): never known of our names, and asked for by browsers and libraries.
    Service,
    Other,
}

/// A query that may be answered by us: opcode QUERY, class IN, one question, nothing else but EDNS version 0.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    id: u16,
    pub(super) recursion_desired: bool,
    checking_disabled: bool,
    query: Query,
    /// The client's EDNS: how much it takes, and whether it wants to be told of DNSSEC.
    edns: Option<(u16, bool)>,
    pub(crate) kind: Kind,
    /// The name in lower case, without the final dot.
    pub(crate) name: String,
}

impl Question {
    /// Reads a query; `None` for whatever is not to be answered by us.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        // Cheap, and before anything is allocated: one question, no answer, no authority, EDNS at most.
        let counts = bytes.get(4..HEADER)?;
        if counts[..7] != [0, 1, 0, 0, 0, 0, 0] || counts[7] > 1 {
            return None;
        }
        let message = Message::from_vec(bytes).ok()?;
        let header = message.metadata;
        let plain = header.message_type == MessageType::Query
            && header.op_code == OpCode::Query
            && header.response_code == ResponseCode::NoError
            && !header.truncation
            && message.additionals.is_empty()
            && message.signature.is_none();
        let [query] = message.queries.as_slice() else { return None };
        if !plain || query.query_class() != DNSClass::IN || message.version() != 0 {
            return None;
        }
        let kind = match query.query_type() {
            RecordType::A => Kind::A,
            RecordType::AAAA => Kind::Aaaa,
            RecordType::HTTPS | RecordType::SVCB => Kind::Service,
            _ => Kind::Other,
        };
        Some(Self {
            id: header.id,
            recursion_desired: header.recursion_desired,
            checking_disabled: header.checking_disabled,
            edns: message.edns.as_ref().map(|edns| (edns.max_payload(), edns.flags().dnssec_ok)),
            kind,
            name: plain_name(query.name())?,
            query: query.clone(),
        })
    }

    /// An answer with these addresses; none says that the name has no address of the kind (NOERROR).
    ///
    /// `alias` is the name that the addresses are of, where it is not the one that was asked for. What does not
    /// fit `limit` bytes, or what the client takes over UDP where that is `None`, is left out, and the client
    /// told to ask by TCP.
    pub(crate) fn answer(
        &self,
        alias: Option<&str>,
        addresses: &[IpAddr],
        limit: Option<usize>,
    ) -> Option<Vec<u8>> {
        let ttl = u32::try_from(TTL.as_secs()).unwrap_or(0);
        let mut message = self.empty(ResponseCode::NoError);
        // As the owner of the name answers.
        message.metadata.authoritative = true;
        let asked = self.query.name();
        let owner = match alias {
            Some(alias) => {
                let mut target = Name::from_ascii(alias).ok()?;
                target.set_fqdn(true);
                let alias = rdata::CNAME(target.clone());
                message.add_answer(Record::from_rdata(asked.clone(), ttl, RData::CNAME(alias)));
                target
            }
            None => asked.clone(),
        };
        for address in addresses {
            let data = match address {
                IpAddr::V4(v4) => RData::A(rdata::A(*v4)),
                IpAddr::V6(v6) => RData::AAAA(rdata::AAAA(*v6)),
            };
            message.add_answer(Record::from_rdata(owner.clone(), ttl, data));
        }
        let limit = limit.unwrap_or_else(|| usize::from(self.payload()));
        let mut bytes = message.to_vec().ok()?;
        if bytes.len() > limit {
            // A record takes what the encoder makes of its name: at least this much of those that may stay is sure to
            // fit, and as many more as do.
            let mut all = std::mem::take(&mut message.answers);
            let without = message.to_vec().ok()?.len();
            let each = (bytes.len() - without).div_ceil(all.len().max(1)).max(1);
            let rest = all.split_off(all.len().min(limit.saturating_sub(without) / each));
            message.answers = all;
            bytes = message.to_vec().ok()?;
            for record in rest {
                message.answers.push(record);
                let more = message.to_vec().ok()?;
                if more.len() > limit {
                    break;
                }
                bytes = more;
            }
            // Said of the bytes: told before, the encoder would leave out every answer.
            *bytes.get_mut(2)? |= TRUNCATED;
        }
        Some(bytes)
    }

    fn empty(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        if let Some((_, dnssec_ok)) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(OUR_PAYLOAD).set_version(0).set_dnssec_ok(dnssec_ok);
            message.set_edns(edns);
        }
        message
    }

    /// What the client takes over UDP.
    fn payload(&self) -> u16 {
        self.edns.map_or(PLAIN_PAYLOAD, |(payload, _)| payload.clamp(PLAIN_PAYLOAD, OUR_PAYLOAD))
    }
}

/// TC and the opcode, in the third byte of the header, and the code of an answer, in the fourth (RFC 1035 §4.1.1).
const TRUNCATED: u8 = 0x02;
const OPCODE: u8 = 0x78;
const CODE: u8 = 0x0f;

/// The longest label of a name; more announces something else (RFC 1035 §4.1.4).
const LONGEST_LABEL: usize = 63;

/// Aliases that are followed: resolvers follow no more.
const MOST_ALIASES: usize = 16;

/// How long it may be kept that a name has no address: at most that, whatever the zone says (RFC 2308 §5).
pub(crate) const NEGATIVE: Duration = Duration::from_secs(5);

/// A name as text; `None` where it has bytes that no host name has, which text would only spell out.
fn plain_name(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*')) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Some(text)
}

/// The answer to a query that could not be passed on: SERVFAIL. Of a query that cannot be read it is a header
/// without a question; `None` for what is no query at all.
pub(crate) fn failure(query: &[u8]) -> Option<Vec<u8>> {
    if query.len() < HEADER || query[2] & 0x80 != 0 {
        return None;
    }
    let code = ResponseCode::ServFail;
    if let Some(question) = Question::read(query) {
        return question.empty(code).to_vec().ok();
    }
    // The id, opcode and RD of the query; QR, RA; SERVFAIL.
    let mut bytes = vec![0; HEADER];
    bytes[..2].copy_from_slice(&query[..2]);
    bytes[2] = 0x80 | query[2] & 0x79;
    bytes[3] = 0x80 | code.low();
    Some(bytes)
}

/// Whether a message may be the answer to a query: a response of the same id, and to the same question where the
/// query has one that can be read (RFC 5452 §9.1). A server that has failed may leave the question out.
pub(crate) fn answers(message: &[u8], query: &[u8]) -> bool {
    let of_the_id =
        message.len() >= HEADER && query.len() >= 2 && message[..2] == query[..2] && message[2] & 0x80 != 0;
    let Some(question) = question_of(query) else { return of_the_id };
    if !of_the_id {
        return false;
    }
    match message[4..6] {
        [0, 0] => !is_known(message[3] & CODE),
        // Letters in whatever case: resolvers are not all as careful with it as those who ask.
        _ => question_of(message).is_some_and(|its| {
            let (name, kind) = question.split_at(question.len() - 4);
            let (its_name, its_kind) = its.split_at(its.len() - 4);
            name.eq_ignore_ascii_case(its_name) && kind == its_kind
        }),
    }
}

/// The bytes of the one question of a message with opcode QUERY; `None` where it cannot be read.
fn question_of(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.get(2)? & OPCODE != 0 || bytes.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        match usize::from(*bytes.get(at)?) {
            0 => break,
            // Nothing is before it that it could point to.
            label if label > LONGEST_LABEL => return None,
            label => at += 1 + label,
        }
    }
    bytes.get(HEADER..at + 5)
}

/// Whether a message says what a resolver says that serves us: it recurses, and knows the name or that there is
/// none. An authoritative server does not recurse; one that may not be asked refuses.
pub(crate) fn is_of_a_resolver(message: &[u8]) -> bool {
    message.len() >= HEADER
        && message[2] & (0x80 | OPCODE) == 0x80
        && message[3] & 0x80 != 0
        && is_known(message[3] & CODE)
}

/// NOERROR and NXDOMAIN.
fn is_known(code: u8) -> bool {
    code == ResponseCode::NoError.low() || code == ResponseCode::NXDomain.low()
}

/// A query for the addresses of a host.
pub(crate) fn ask(id: u16, host: &str, kind: RecordType) -> Option<Vec<u8>> {
    let mut name = Name::from_ascii(host).ok()?;
    name.set_fqdn(true);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(OUR_PAYLOAD).set_version(0);
    message.set_edns(edns);
    message.to_vec().ok()
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) addresses: Vec<IpAddr>,
    /// For how long: the shortest of the records', or what is allowed for there being none.
    pub(crate) ttl: Duration,
    pub(crate) truncated: bool,
}

/// Reads the addresses of an answer to a query of [`ask`]. `None` where it is none, says that it failed, or is what
/// a server says that is not the one to ask. A name that does not exist has no address.
pub(crate) fn read_addresses(bytes: &[u8]) -> Option<Told> {
    let message = Message::from_vec(bytes).ok()?;
    let known = matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    if message.metadata.message_type != MessageType::Response || !known {
        return None;
    }
    let [asked] = message.queries.as_slice() else { return None };
    let records = &message.answers[..message.answers.len().min(MOST_RECORDS)];
    let mut told =
        Told { addresses: Vec::new(), ttl: Duration::from_secs(300), truncated: message.metadata.truncation };
    let mut keep = |ttl: u32| told.ttl = told.ttl.min(Duration::from_secs(ttl.into()));
    // The resolver follows aliases and puts what it finds into the one answer: what is not on the way from the name
    // that was asked for is none of its addresses.
    let mut name = asked.name();
    for _ in 0..MOST_ALIASES {
        let alias = records.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *name => Some((&target.0, record.ttl)),
            _ => None,
        });
        let Some((target, ttl)) = alias else { break };
        keep(ttl);
        name = target;
    }
    for record in records.iter().filter(|record| record.name == *name) {
        let address = match &record.data {
            RData::A(a) if asked.query_type() == RecordType::A => IpAddr::V4(a.0),
            RData::AAAA(aaaa) if asked.query_type() == RecordType::AAAA => IpAddr::V6(aaaa.0),
            _ => continue,
        };
        keep(record.ttl);
        told.addresses.push(address);
    }
    if told.addresses.is_empty() {
        // Where to ask on (a referral) is not that there is nothing.
        if !message.metadata.recursion_available {
            return None;
        }
        let soa = message.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        });
        told.ttl = soa.map_or(NEGATIVE, |ttl| Duration::from_secs(ttl.into()).min(NEGATIVE));
    }
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cArt.shop` in mixed case, with or without EDNS for 4096 bytes.
    fn query(kind: u16, edns: bool) -> Vec<u8> {
        let mut bytes = vec![0xbe, 0xef, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        bytes.extend(b"\x04cArt\x04shop\0");
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        if edns {
            bytes.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Message {
        Message::from_vec(bytes).expect("a message")
    }

    #[test]
    fn a_plain_question_is_read_and_answered_in_its_own_spelling() {
        let bytes = query(1, false);
        let question = Question::read(&bytes).expect("a question");
        assert_eq!((question.kind, question.name.as_str()), (Kind::A, "cart.shop"));
        let answer = question.answer(None, &["10.0.0.1".parse().unwrap()], None).unwrap();
        assert_eq!(answer[..2], [0xbe, 0xef]);
        assert_eq!(answer[12..22], bytes[12..22], "the question's bytes, in its case");
        let answer = read(&answer);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        assert!(answer.metadata.recursion_desired && !answer.metadata.truncation);
        assert!(answer.edns.is_none(), "EDNS only for who speaks it");
        assert_eq!(answer.answers.len(), 1);
        assert_eq!(answer.answers[0].ttl, 30);
        assert_eq!(answer.answers[0].data, RData::A(rdata::A("10.0.0.1".parse().unwrap())));
    }

    #[test]
    fn a_search_domain_becomes_an_alias() {
        let question = Question::read(&query(28, true)).unwrap();
        let answer =
            read(&question.answer(Some("ext.example"), &["fd00::1".parse().unwrap()], None).unwrap());
        assert_eq!(
            answer.answers[0].data,
            RData::CNAME(rdata::CNAME(Name::from_ascii("ext.example.").unwrap()))
        );
        assert_eq!(answer.answers[1].name, Name::from_ascii("ext.example.").unwrap());
        assert!(answer.edns.is_some());
    }

    #[test]
    fn no_address_of_the_kind_is_no_error() {
        let answer = read(&Question::read(&query(28, false)).unwrap().answer(None, &[], None).unwrap());
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.answers.is_empty());
    }

    #[test]
    fn what_the_client_does_not_take_is_left_out_and_told() {
        let many: Vec<IpAddr> = (0..200).map(|n| IpAddr::from([10, 0, 1, n])).collect();
        for (edns, limit) in [(false, 512), (true, 1232)] {
            let question = Question::read(&query(1, edns)).unwrap();
            let bytes = question.answer(None, &many, None).unwrap();
            assert!(bytes.len() <= limit && bytes.len() > limit - 64, "{}", bytes.len());
            let answer = read(&bytes);
            assert!(answer.metadata.truncation && !answer.answers.is_empty());
            let whole = read(&question.answer(None, &many, Some(65_535)).unwrap());
            assert!(!whole.metadata.truncation);
            assert_eq!(whole.answers.len(), 200, "over TCP all of them");
        }
    }

    #[test]
    fn whatever_else_is_none_of_our_business() {
        let plain = query(1, true);
        let changed = |at: usize, byte: u8| {
            let mut bytes = plain.clone();
            bytes[at] = byte;
            bytes
        };
        assert!(Question::read(&plain).is_some());
        for (what, bytes) in [
            ("a response", changed(2, 0x81)),
            ("opcode UPDATE", changed(2, 0x29)),
            ("an unknown opcode", changed(2, 0x79)),
            ("truncated", changed(2, 0x03)),
            ("two questions", changed(5, 2)),
            ("an answer", changed(7, 1)),
            ("class CHAOS", changed(25, 3)),
            ("EDNS of a later version", changed(32, 1)),
            ("a name with a blank", changed(14, b' ')),
            ("cut short", plain[..20].to_vec()),
            ("nothing", Vec::new()),
            ("a loop of names", [&plain[..12], &[0xc0, 0x0c, 0, 1, 0, 1][..]].concat()),
        ] {
            assert!(Question::read(&bytes).is_none(), "{what}");
        }
        let other = Question::read(&query(33, false)).expect("readable");
        assert_eq!(other.kind, Kind::Other);
        assert_eq!(Question::read(&query(65, false)).expect("readable").kind, Kind::Service);
    }

    #[test]
    fn a_failure_says_so_to_the_query_it_is_for() {
        let answer = failure(&query(1, true)).unwrap();
        assert_eq!(read(&answer).metadata.response_code, ResponseCode::ServFail);
        assert_eq!(read(&answer).queries.len(), 1);
        assert!(answers(&answer, &query(1, true)));
        let update = [&[1, 2, 0x28, 0][..], &[0xff; 30]].concat();
        assert_eq!(failure(&update).unwrap()[..4], [1, 2, 0xa8, 0x82]);
        assert_eq!(failure(&answer), None, "nobody answers an answer");
        assert_eq!(failure(&[0; 11]), None);
    }

    #[test]
    fn the_addresses_of_an_answer_are_read() {
        let asked = ask(7, "ext.example", RecordType::A).unwrap();
        let question = Question::read(&asked).unwrap();
        assert_eq!(question.name, "ext.example");
        let answer = question.answer(Some("other.example"), &["192.0.2.1".parse().unwrap()], None).unwrap();
        let told = read_addresses(&answer).unwrap();
        assert_eq!(told.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(told.ttl, TTL);
        assert_eq!(read_addresses(&asked), None, "a query tells nothing");
        assert_eq!(read_addresses(&failure(&asked).unwrap()), None);
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    /// An answer to a query for `ext.example` with these records, changed.
    fn answer_with(records: &[(&str, RData)], change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let question = Question::read(&ask(7, "ext.example", RecordType::A).unwrap()).unwrap();
        let mut message = question.empty(ResponseCode::NoError);
        message.add_answers(
            records.iter().map(|(owner, data)| Record::from_rdata(name(owner), 60, data.clone())),
        );
        change(&mut message);
        message.to_vec().unwrap()
    }

    fn alias(target: &str) -> RData {
        RData::CNAME(rdata::CNAME(name(target)))
    }

    fn address(last: u8) -> RData {
        RData::A(rdata::A([192, 0, 2, last].into()))
    }

    #[test]
    fn only_what_is_on_the_way_from_the_name_is_its_address() {
        let read =
            |records: &[(&str, RData)]| read_addresses(&answer_with(records, |_| {})).unwrap().addresses;
        let one = [IpAddr::from([192, 0, 2, 1])];
        let chain = [
            ("b.example.", address(1)),
            ("a.example.", alias("B.example.")),
            ("ext.example.", alias("a.example.")),
            ("other.example.", address(2)),
            ("a.example.", address(3)),
        ];
        assert_eq!(read(&chain), one, "in whatever order and case");
        let v6 = RData::AAAA(rdata::AAAA("2001:db8::1".parse().unwrap()));
        assert_eq!(
            read(&[("ext.example.", v6), ("ext.example.", address(1))]),
            one,
            "of the family asked for"
        );
        assert!(read(&[("ext.example.", alias("gone.example.")), ("ext.example.", address(1))]).is_empty());
        let ring = [("ext.example.", alias("a.example.")), ("a.example.", alias("ext.example."))];
        assert!(read(&ring).is_empty());
    }

    #[test]
    fn that_there_is_no_address_holds_as_long_as_the_zone_says_and_no_longer_than_a_moment() {
        let soa = |minimum| {
            let soa = rdata::SOA::new(name("ns.example."), name("root.example."), 1, 60, 60, 60, minimum);
            Record::from_rdata(name("example."), 3600, RData::SOA(soa))
        };
        for (minimum, seconds) in [(Some(2), 2), (Some(3600), 5), (None, 5)] {
            let bytes = answer_with(&[], |message| {
                message.metadata.response_code = ResponseCode::NXDomain;
                message.authorities.extend(minimum.map(soa));
            });
            let told = read_addresses(&bytes).expect("known not to be");
            assert_eq!((told.addresses.len(), told.ttl), (0, Duration::from_secs(seconds)));
        }
        let referral = answer_with(&[], |message| message.metadata.recursion_available = false);
        assert_eq!(read_addresses(&referral), None, "it says nothing of the name");
        assert!(!is_of_a_resolver(&referral) && is_of_a_resolver(&answer_with(&[], |_| {})));
        let code = |code| answer_with(&[], |message| message.metadata.response_code = code);
        assert!(is_of_a_resolver(&code(ResponseCode::NXDomain)));
        assert!(!is_of_a_resolver(&code(ResponseCode::Refused)) && !is_of_a_resolver(&query(1, false)));
    }

    #[test]
    fn an_answer_is_to_the_same_question() {
        let asked = query(1, true);
        let answer = Question::read(&asked).unwrap().answer(None, &[[192, 0, 2, 1].into()], None).unwrap();
        assert!(answers(&answer, &asked));
        let changed = |at: usize, byte: u8| {
            let mut bytes = answer.clone();
            bytes[at] = byte;
            bytes
        };
        assert!(answers(&changed(14, b'a'), &asked), "in other letters");
        for (what, bytes) in [
            ("another id", changed(1, 0)),
            ("a query", changed(2, 1)),
            ("another name", changed(13, b'p')),
            ("another type", changed(24, 28)),
            ("another class", changed(26, 3)),
            ("another opcode", changed(2, 0xa8)),
            ("no question, and yet an answer", changed(5, 0)),
            ("two questions", changed(5, 2)),
            ("cut short", answer[..20].to_vec()),
        ] {
            assert!(!answers(&bytes, &asked), "{what}");
        }
        let refused = [&asked[..2], &[0x81, 0x85], &[0; 8]].concat();
        assert!(answers(&refused, &asked), "who refuses need not repeat the question");
        let unreadable = [&asked[..12], &[0xc0]].concat();
        assert!(answers(&refused, &unreadable) && answers(&answer, &unreadable));
    }
}
