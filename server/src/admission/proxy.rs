//! The PROXY protocol, versions 1 and 2: a header in front of everything else on a connection, in which a proxy says
//! who its client is.
//!
//! A pure function from bytes to a header, so that it can be fuzzed. It is strict: who has to send a header and sends
//! something else is refused. Extensions of version 2 are read over, but for the checksum, which has to be right.
//!
//! Reference: HAProxy's `doc/proxy-protocol.txt`, 2.2 (TLVs) and 2.2.3 (CRC32c).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A header that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How many bytes it is long; what follows is the client's.
    pub length: usize,
    /// The client; none where the proxy speaks for itself or doesn't say, so that the socket's own address counts.
    pub client: Option<IpAddr>,
}

/// What came is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY protocol header, or a malformed one")]
pub struct NotAHeader;

/// Longest header that is read, in bytes: version 1 needs 107, and version 2 has room for a client certificate's name.
pub const HEADER_BYTES_MAX: usize = 2 * 1024;

/// The header that these bytes begin with; none while more are needed.
///
/// # Errors
/// They can't become a header, or a longer one than [`HEADER_BYTES_MAX`].
pub fn decode(bytes: &[u8]) -> Result<Option<Header>, NotAHeader> {
    if begins(bytes, SIGNATURE) {
        return decode_binary(bytes);
    }
    if begins(bytes, PREFIX) {
        return decode_text(bytes);
    }
    Err(NotAHeader)
}

/// Whether these bytes are the beginning of those, or the other way round.
fn begins(bytes: &[u8], expected: &[u8]) -> bool {
    let common = bytes.len().min(expected.len());
    bytes.get(..common) == expected.get(..common)
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n`
fn decode_text(bytes: &[u8]) -> Result<Option<Header>, NotAHeader> {
    let window = bytes.get(..TEXT_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < TEXT_BYTES_MAX {
            Ok(None)
        } else {
            Err(NotAHeader)
        };
    };
    let line = window.get(PREFIX.len()..end).ok_or(NotAHeader)?;
    let line = std::str::from_utf8(line).map_err(|_| NotAHeader)?;
    let length = end + 2;
    let mut words = line.split(' ');
    let family = words.next();
    if family == Some("UNKNOWN") {
        let client = None;
        return Ok(Some(Header { length, client }));
    }
    let mut address = || words.next().and_then(|word| word.parse::<IpAddr>().ok());
    let (client, server) = (address(), address());
    let mut port = || words.next().and_then(|word| word.parse::<u16>().ok());
    let ports = port().is_some() && port().is_some();
    let fits = match (family, client, server) {
        (Some("TCP4"), Some(client), Some(server)) => client.is_ipv4() && server.is_ipv4(),
        (Some("TCP6"), Some(client), Some(server)) => client.is_ipv6() && server.is_ipv6(),
        _ => false,
    };
    if !fits || !ports || words.next().is_some() {
        return Err(NotAHeader);
    }
    Ok(Some(Header { length, client }))
}

fn decode_binary(bytes: &[u8]) -> Result<Option<Header>, NotAHeader> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
        return Ok(None);
    };
    let [.., command, family, high, low] = *fixed;
    let body_length = usize::from(u16::from_be_bytes([high, low]));
    let length = FIXED_BYTES + body_length;
    // Refused before it has arrived: nobody waits for what would not be read.
    if length > HEADER_BYTES_MAX || command >> 4 != 2 || command & 0xf > 1 {
        return Err(NotAHeader);
    }
    let Some(body) = rest.get(..body_length) else {
        return Ok(None);
    };
    let header = bytes.get(..length).ok_or(NotAHeader)?;
    let (client, extensions) = match family {
        TCP4 => {
            let (addresses, extensions) = body.split_first_chunk::<12>().ok_or(NotAHeader)?;
            let [a, b, c, d, ..] = *addresses;
            (Some(Ipv4Addr::new(a, b, c, d).into()), extensions)
        }
        TCP6 => {
            let (addresses, extensions) = body.split_first_chunk::<36>().ok_or(NotAHeader)?;
            let client = addresses.first_chunk::<16>().ok_or(NotAHeader)?;
            (Some(Ipv6Addr::from(*client).into()), extensions)
        }
        UNIX => (None, body.get(216..).ok_or(NotAHeader)?),
        // A family that is not known is the proxy's own connection, as the protocol has it.
        _ => (None, &[][..]),
    };
    check_extensions(header, extensions)?;
    let is_local = command & 0xf == LOCAL;
    Ok(Some(Header {
        length,
        client: client.filter(|_| !is_local),
    }))
}

/// Reads over the extensions: each a type, a length of two bytes, and so many bytes.
fn check_extensions(header: &[u8], mut extensions: &[u8]) -> Result<(), NotAHeader> {
    while let Some((head, rest)) = extensions.split_first_chunk::<3>() {
        let [kind, high, low] = *head;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, behind) = rest.split_at_checked(length).ok_or(NotAHeader)?;
        if kind == CRC32C {
            let value = <[u8; 4]>::try_from(value).map_err(|_| NotAHeader)?;
            let at = header.len() - rest.len();
            if u32::from_be_bytes(value) != checksum(header, at) {
                return Err(NotAHeader);
            }
        }
        extensions = behind;
    }
    if extensions.is_empty() {
        Ok(())
    } else {
        Err(NotAHeader)
    }
}

/// CRC32c (RFC 3720 §B.4) of a header, its own four bytes counting as zero. Headers are short, so it goes bit by bit.
fn checksum(header: &[u8], at: usize) -> u32 {
    let own = at..at + 4;
    let bytes = header.iter().enumerate();
    let zeroed = bytes.map(|(index, byte)| if own.contains(&index) { 0 } else { *byte });
    !zeroed.fold(u32::MAX, |mut crc, byte| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let carry = if crc & 1 == 1 { CRC32C_POLYNOMIAL } else { 0 };
            crc = (crc >> 1) ^ carry;
        }
        crc
    })
}

const PREFIX: &[u8] = b"PROXY ";

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The signature, version and command, family, length.
const FIXED_BYTES: usize = 16;

/// The longest line that version 1 has (its section 2.1).
const TEXT_BYTES_MAX: usize = 107;

const LOCAL: u8 = 0;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const UNIX: u8 = 0x31;

const CRC32C: u8 = 3;
const CRC32C_POLYNOMIAL: u32 = 0x82f6_3b78;

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, body].concat()
    }

    const V4_BODY: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0x12, 0x67, 0x01, 0xbb];

    /// Whole headers of both versions, with what follows them left alone; and every beginning of one is not refused.
    #[test]
    fn headers_are_read() {
        let v6_body = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 20]].concat();
        let extended = [&V4_BODY[..], &[4, 0, 2, 0, 0], &[0xe0, 0, 1, 9]].concat();
        for (bytes, client) in [
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n".to_vec(),
                Some("192.0.2.1"),
            ),
            (
                b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n".to_vec(),
                Some("2001:db8::1"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever it is\r\n".to_vec(), None),
            (binary(0x21, TCP4, &V4_BODY), Some("192.0.2.1")),
            (binary(0x21, TCP4, &extended), Some("192.0.2.1")),
            (binary(0x21, TCP6, &v6_body), Some("2001:db8::1")),
            (binary(0x21, UNIX, &[b'/'; 216]), None),
            (binary(0x20, TCP4, &V4_BODY), None),
            (binary(0x20, 0, &[]), None),
            (binary(0x21, 0, &[1, 2, 3]), None),
            (binary(0x21, 0x12, &V4_BODY), None),
        ] {
            let client = client.map(|client| client.parse().unwrap());
            let length = bytes.len();
            let followed = [&bytes[..], b"GET / HTTP/1.1"].concat();
            assert_eq!(
                decode(&followed),
                Ok(Some(Header { length, client })),
                "{bytes:?}"
            );
            for end in 0..length {
                assert_eq!(decode(&bytes[..end]), Ok(None), "{:?}", &bytes[..end]);
            }
        }
    }

    /// What is no header, or not a right one, is refused as soon as that shows.
    #[test]
    fn anything_else_is_refused() {
        let cut = [&V4_BODY[..], &[4, 0, 9, 0]].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"P0".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 4711\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443 1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 65536\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 2001:db8::2 4711 443\r\n".to_vec(),
            b"PROXY TCP4  192.0.2.1 198.51.100.1 4711 443\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 198.51.100.1 4711 443\r\n".to_vec(),
            b"PROXY TCP4 \xff\r\n".to_vec(),
            [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat(),
            binary(0x11, TCP4, &V4_BODY),
            binary(0x22, TCP4, &V4_BODY),
            binary(0x21, TCP4, &V4_BODY[..11]),
            binary(0x21, TCP6, &V4_BODY),
            binary(0x21, UNIX, &V4_BODY),
            binary(0x21, TCP4, &cut),
        ] {
            assert_eq!(decode(&bytes), Err(NotAHeader), "{bytes:?}");
        }
    }

    /// A header of the longest length is read; one that announces more is refused at once.
    #[test]
    fn headers_are_bounded() {
        let mut longest = vec![0; HEADER_BYTES_MAX - FIXED_BYTES];
        let header = binary(0x21, 0, &longest);
        let length = HEADER_BYTES_MAX;
        let client = None;
        assert_eq!(decode(&header), Ok(Some(Header { length, client })));
        longest.push(0);
        let header = binary(0x21, 0, &longest);
        assert_eq!(decode(&header[..FIXED_BYTES]), Err(NotAHeader));
    }

    /// A checksum that is there has to be right. The check value of CRC32c is that of RFC 3720.
    #[test]
    fn a_checksum_is_checked() {
        assert_eq!(
            checksum(&[b"123456789".as_slice(), &[0; 4]].concat()[..9], 9),
            0xe306_9283
        );
        let body = [&V4_BODY[..], &[CRC32C, 0, 4, 0, 0, 0, 0]].concat();
        let mut header = binary(0x21, TCP4, &body);
        assert_eq!(decode(&header), Err(NotAHeader));
        let at = header.len() - 4;
        let right = checksum(&header, at).to_be_bytes();
        header[at..].copy_from_slice(&right);
        assert!(matches!(decode(&header), Ok(Some(_))));
        let short = [&V4_BODY[..], &[CRC32C, 0, 3, 0, 0, 0]].concat();
        assert_eq!(decode(&binary(0x21, TCP4, &short)), Err(NotAHeader));
    }
}
