//! The handshake (fixed newstyle): what a client asks for before it reads.

use super::contents::{ALLOCATION, Contents};
use super::line::{Ended, Line};
use super::wire::{
    Fields, HELLO, Head, OPTION, OPTION_REPLY, export, handshake, info, option, reply,
};

/// Longest data of an option that is looked at: more than a name and some
/// queries have.
const OPTION_BYTES: usize = 16 << 10;
/// Longest data that are read away.
const PATIENTLY: u32 = 1 << 20;
/// Most options of one client.
const MOST_OPTIONS: usize = 1000;
/// Longest name and query that the protocol has.
const TEXT_BYTES: usize = 4096;

/// Block sizes: least, best and most bytes of a read.
const BLOCKS: [u32; 3] = [1, 4096, super::MOST_BYTES];

/// What a client and the server have agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Agreed {
    /// Replies come in chunks.
    pub(super) structured: bool,
    /// Metadata contexts that were chosen, by their numbers.
    pub(super) contexts: Vec<usize>,
}

struct Negotiation<'a, L> {
    line: &'a mut L,
    contents: &'a dyn Contents,
    agreed: Agreed,
    /// By which name contexts were chosen.
    chosen_for: Vec<u8>,
    /// Nothing follows the answer to `EXPORT_NAME`.
    no_zeroes: bool,
    data: Vec<u8>,
}

/// Until the client reads.
///
/// # Errors
/// It does not come to that.
pub(super) fn negotiate(line: &mut impl Line, contents: &dyn Contents) -> Result<Agreed, Ended> {
    let mut hello = Head::new();
    hello.u64(HELLO);
    hello.u64(OPTION);
    hello.u16(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    line.send(hello.as_bytes(), &[])?;
    let mut flags = [0; 4];
    line.receive(&mut flags)?;
    let flags = u32::from_be_bytes(flags);
    let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    if flags & !known != 0 {
        return Err(Ended::Nonsense("flags that are not known"));
    }
    let mut negotiation = Negotiation {
        line,
        contents,
        agreed: Agreed::default(),
        chosen_for: Vec::new(),
        no_zeroes: flags & u32::from(handshake::NO_ZEROES) != 0,
        data: Vec::with_capacity(OPTION_BYTES),
    };
    for _ in 0..MOST_OPTIONS {
        if negotiation.next()? {
            return Ok(negotiation.agreed);
        }
    }
    Err(Ended::Nonsense("more options than anybody needs"))
}

impl<L: Line> Negotiation<'_, L> {
    /// Answers an option; whether that was the last one.
    fn next(&mut self) -> Result<bool, Ended> {
        let mut head = [0; 16];
        self.line.receive(&mut head)?;
        let mut fields = Fields(&head);
        let (Some(OPTION), Some(option), Some(length)) = (fields.u64(), fields.u32(), fields.u32())
        else {
            return Err(Ended::Nonsense("no option"));
        };
        if !self.take(length)? {
            return self.refuse(option, reply::TOO_BIG, "that is too long");
        }
        let data = std::mem::take(&mut self.data);
        let last = self.answer(option, &data);
        self.data = data;
        last
    }

    /// Takes the data of an option, or reads them away.
    fn take(&mut self, length: u32) -> Result<bool, Ended> {
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        self.data.clear();
        if bytes <= OPTION_BYTES {
            self.data.resize(bytes, 0);
            self.line.receive(&mut self.data)?;
            return Ok(true);
        }
        if length > PATIENTLY {
            return Err(Ended::Nonsense("an option of more than a megabyte"));
        }
        self.data.resize(OPTION_BYTES, 0);
        let mut left = bytes;
        while left > 0 {
            let part = left.min(OPTION_BYTES);
            let into = self.data.get_mut(..part).unwrap_or_default();
            self.line.receive(into)?;
            left -= part;
        }
        Ok(false)
    }

    fn answer(&mut self, option: u32, data: &[u8]) -> Result<bool, Ended> {
        match option {
            option::EXPORT_NAME => self.export_name(data),
            option::ABORT => {
                // The client may have gone already.
                let _ = self.reply(option, reply::ACK, &[], &[]);
                Err(Ended::Asked)
            }
            option::LIST if data.is_empty() => {
                let name = self.contents.name().as_bytes();
                let mut head = Head::new();
                head.u32(u32::try_from(name.len()).unwrap_or(0));
                self.reply(option, reply::SERVER, head.as_bytes(), name)?;
                self.acknowledge(option)
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.agreed.structured = true;
                self.acknowledge(option)
            }
            option::LIST | option::STRUCTURED_REPLY => {
                self.refuse(option, reply::INVALID, "there are no data to that")
            }
            option::INFO | option::GO => self.go(option, data),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data),
            _ => self.refuse(option, reply::UNSUPPORTED, "there is no such option"),
        }
    }

    fn export_name(&mut self, name: &[u8]) -> Result<bool, Ended> {
        if !self.is_ours(name) {
            // There is no other way to say so.
            return Err(Ended::Nonsense("a name that is not known"));
        }
        self.forget_contexts_of_another(name);
        let mut head = Head::new();
        head.u64(self.contents.size());
        head.u16(self.flags());
        let zeroes = if self.no_zeroes { &[][..] } else { &[0; 124] };
        self.line.send(head.as_bytes(), zeroes)?;
        Ok(true)
    }

    fn go(&mut self, option: u32, data: &[u8]) -> Result<bool, Ended> {
        let Some((name, asked)) = parse_go(data) else {
            return self.refuse(option, reply::INVALID, "that is not a name and a list");
        };
        if !self.is_ours(name) {
            return self.unknown(option);
        }
        let mut head = Head::new();
        head.u16(info::EXPORT);
        head.u64(self.contents.size());
        head.u16(self.flags());
        self.reply(option, reply::INFO, head.as_bytes(), &[])?;
        let mut head = Head::new();
        head.u16(info::BLOCK_SIZE);
        for size in BLOCKS {
            head.u32(size);
        }
        self.reply(option, reply::INFO, head.as_bytes(), &[])?;
        if asked.contains(&info::NAME) {
            let mut head = Head::new();
            head.u16(info::NAME);
            let name = self.contents.name().as_bytes();
            self.reply(option, reply::INFO, head.as_bytes(), name)?;
        }
        self.acknowledge(option)?;
        let last = option == option::GO;
        if last {
            self.forget_contexts_of_another(name);
        }
        Ok(last)
    }

    fn contexts(&mut self, option: u32, data: &[u8]) -> Result<bool, Ended> {
        let lists = option == option::LIST_META_CONTEXT;
        if !lists {
            self.agreed.contexts.clear();
        }
        if !self.agreed.structured {
            return self.refuse(option, reply::INVALID, "structured replies come first");
        }
        let Some((name, queries)) = parse_queries(data) else {
            return self.refuse(option, reply::INVALID, "that is not a name and queries");
        };
        if !self.is_ours(name) {
            return self.unknown(option);
        }
        let all = self.contents.contexts();
        let mut chosen: Vec<usize> = Vec::with_capacity(all.len());
        for (number, context) in all.iter().enumerate() {
            let asked = |query: &&[u8]| answers(context, query, lists);
            if lists && queries.is_empty() || queries.iter().any(asked) {
                chosen.push(number);
            }
        }
        for &number in &chosen {
            let mut head = Head::new();
            head.u32(context_id(number));
            let context = all.get(number).map_or("", String::as_str);
            self.reply(
                option,
                reply::META_CONTEXT,
                head.as_bytes(),
                context.as_bytes(),
            )?;
        }
        if !lists {
            self.agreed.contexts = chosen;
            self.chosen_for = name.to_vec();
        }
        self.acknowledge(option)
    }

    fn is_ours(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.contents.name().as_bytes()
    }

    /// Contexts are of the name that they were chosen for.
    fn forget_contexts_of_another(&mut self, name: &[u8]) {
        if self.chosen_for != name {
            self.agreed.contexts.clear();
        }
    }

    fn flags(&self) -> u16 {
        let df = if self.agreed.structured {
            export::SEND_DF
        } else {
            0
        };
        export::HAS_FLAGS | export::READ_ONLY | export::CAN_MULTI_CONN | export::SEND_CACHE | df
    }

    fn acknowledge(&mut self, option: u32) -> Result<bool, Ended> {
        self.reply(option, reply::ACK, &[], &[])?;
        Ok(false)
    }

    fn unknown(&mut self, option: u32) -> Result<bool, Ended> {
        self.refuse(option, reply::UNKNOWN, "nothing has that name here")
    }

    fn refuse(&mut self, option: u32, kind: u32, why: &str) -> Result<bool, Ended> {
        self.reply(option, kind, &[], why.as_bytes())?;
        Ok(false)
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8], more: &[u8]) -> Result<(), Ended> {
        let mut head = Head::new();
        head.u64(OPTION_REPLY);
        head.u32(option);
        head.u32(kind);
        head.u32(u32::try_from(data.len() + more.len()).unwrap_or(0));
        self.line.send(head.as_bytes(), data)?;
        self.line.send(more, &[])
    }
}

/// By which number a client knows a context.
pub(super) fn context_id(number: usize) -> u32 {
    u32::try_from(number).map_or(u32::MAX, |number| number.saturating_add(1))
}

/// A name, and numbers of what is asked for.
fn parse_go(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.text().filter(|name| name.len() <= TEXT_BYTES)?;
    let count = fields.u16()?;
    // Not more than there are bytes.
    let asked: Option<Vec<u16>> = (0..count).map(|_| fields.u16()).collect();
    fields.0.is_empty().then_some((name, asked?))
}

/// A name, and queries for contexts.
fn parse_queries(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut fields = Fields(data);
    let name = fields.text().filter(|name| name.len() <= TEXT_BYTES)?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(fields.text().filter(|query| query.len() <= TEXT_BYTES)?);
    }
    fields.0.is_empty().then_some((name, queries))
}

/// Whether a query means a context: by its name, and in a list by its namespace
/// too.
fn answers(context: &str, query: &[u8], lists: bool) -> bool {
    let (allocation, bitmap) = (b"base:".as_slice(), b"qemu:dirty-bitmap:".as_slice());
    let by_namespace = match context {
        ALLOCATION => query == allocation,
        _ => query == bitmap || query == b"qemu:",
    };
    query == context.as_bytes() || (lists && by_namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_by_name_and_in_lists_by_namespace() {
        let bitmap = "qemu:dirty-bitmap:monday";
        assert!(answers(ALLOCATION, b"base:allocation", false));
        assert!(answers(bitmap, bitmap.as_bytes(), false));
        for query in [
            &b"base:"[..],
            b"qemu:",
            b"qemu:dirty-bitmap:",
            b"",
            b"base:alloc",
        ] {
            assert!(!answers(ALLOCATION, query, false) && !answers(bitmap, query, false));
        }
        assert!(answers(ALLOCATION, b"base:", true) && !answers(bitmap, b"base:", true));
        for query in [&b"qemu:"[..], b"qemu:dirty-bitmap:"] {
            assert!(answers(bitmap, query, true) && !answers(ALLOCATION, query, true));
        }
    }

    #[test]
    fn data_that_are_longer_or_shorter_than_they_say_are_nothing() {
        let go = [0, 0, 0, 1, b'a', 0, 1, 0, 3];
        assert_eq!(parse_go(&go), Some((&b"a"[..], vec![3])));
        let queries = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, b'q'];
        assert_eq!(parse_queries(&queries), Some((&b""[..], vec![&b"q"[..]])));
        for end in 0..go.len() {
            assert_eq!(parse_go(&go[..end]), None);
        }
        for end in 0..queries.len() {
            assert_eq!(parse_queries(&queries[..end]), None);
        }
        assert_eq!(parse_go(&[&go[..], &[0]].concat()), None);
        assert_eq!(parse_queries(&[&queries[..], &[0]].concat()), None);
        // Four thousand million queries, of which there is one.
        let many = [&[0, 0, 0, 0, 255, 255, 255, 255][..], &queries[8..]].concat();
        assert_eq!(parse_queries(&many), None);
    }
}
