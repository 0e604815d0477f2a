//! What strace has written: the server's calls that change files, in their order.
//!
//! strace stops the process at each call, so that its lines have one order: a call that has ended on an earlier line was over before
//! one on a later line began.

use std::collections::HashMap;

/// One call.
#[derive(Debug)]
pub(crate) struct Call {
    /// The line on which it began.
    pub(crate) start: usize,
    /// That on which it ended; [`usize::MAX`] for never.
    pub(crate) end: usize,
    pub(crate) name: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) result: i64,
}

impl Call {
    /// The result, where it is a length or a place.
    pub(crate) fn size(&self) -> usize {
        usize::try_from(self.result).unwrap()
    }
}

/// All calls that were made, and when each line began.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// By the line on which they ended.
    pub(crate) calls: Vec<Call>,
    /// Of each line, in microseconds since 1970.
    pub(crate) times_us: Vec<u64>,
}

impl Trace {
    /// Reads the lines of `strace -f -ttt -xx -o`.
    pub(crate) fn read(text: &str) -> Self {
        let mut trace = Self::default();
        let mut begun: HashMap<&str, (usize, &str)> = HashMap::new();
        for (line, text) in text.lines().enumerate() {
            let (thread, rest) = text.split_once(' ').unwrap();
            // The thread's number is padded.
            let (time, rest) = rest.trim_start().split_once(' ').unwrap();
            trace.times_us.push(micros(time));
            if let Some(head) = rest.strip_suffix(" <unfinished ...>") {
                begun.insert(thread, (line, head));
            } else if let Some(resumed) = rest.strip_prefix("<... ") {
                let (_, tail) = resumed.split_once(" resumed>").unwrap();
                let (start, head) = begun.remove(thread).unwrap();
                trace.add(start, line, &format!("{head}{tail}"));
            } else if !rest.starts_with("+++") && !rest.starts_with("---") {
                trace.add(line, line, rest);
            }
        }
        for (start, head) in begun.into_values() {
            trace.add(start, usize::MAX, &format!("{head}) = 0"));
        }
        trace.calls.sort_by_key(|call| (call.end, call.start));
        trace
    }

    fn add(&mut self, start: usize, end: usize, text: &str) {
        let (name, rest) = text.split_once('(').unwrap();
        let (arguments, result) = rest.rsplit_once(" = ").unwrap();
        let arguments = arguments.trim_end().strip_suffix(')').unwrap();
        let result = result.split(' ').next().unwrap();
        self.calls.push(Call {
            start,
            end,
            name: name.to_owned(),
            arguments: split(arguments),
            // `?`: the process ended in it.
            result: result.parse().unwrap_or(-1),
        });
    }
}

fn micros(time: &str) -> u64 {
    let (seconds, micros) = time.split_once('.').unwrap();
    seconds.parse::<u64>().unwrap() * 1_000_000 + micros.parse::<u64>().unwrap()
}

/// The arguments of a call. In texts all is hexadecimal, so that a comma is one between arguments, or inside of brackets.
fn split(text: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for part in text.split(", ") {
        let last = parts.last_mut().unwrap();
        if depth > 0 {
            last.push_str(", ");
        } else if !last.is_empty() {
            parts.push(String::new());
        }
        parts.last_mut().unwrap().push_str(part);
        let brackets = |all: [char; 2]| part.matches(all).count();
        depth += brackets(['[', '{']);
        depth -= brackets([']', '}']);
    }
    parts
}

/// The bytes of a text, all of whose characters are written as `\x41`.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    let inner = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    let inner = inner.unwrap_or_else(|| panic!("strace has cut off {text:.80}"));
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte - b'0',
        _ => byte - b'a' + 10,
    };
    inner
        .as_bytes()
        .chunks_exact(4)
        .map(|chunk| 16 * digit(chunk[2]) + digit(chunk[3]))
        .collect()
}

/// The bytes of `[{iov_base="…", iov_len=1}, …]`.
pub(crate) fn vector_bytes(text: &str) -> Vec<u8> {
    let parts = text.split("iov_base=").skip(1);
    parts
        .flat_map(|part| bytes(part.split(',').next().unwrap()))
        .collect()
}
