//! The header of a proxy (PROXY protocol, versions 1 and 2).
//!
//! A header is known once all of it is there and not before, and what follows it changes nothing.

use roomful_server::admission::proxy::{HEADER_BYTES_MAX, decode};

pub(crate) fn check(data: &[u8]) {
    let whole = decode(data);
    if let Ok(Some(header)) = whole {
        assert!(header.length <= data.len() && header.length <= HEADER_BYTES_MAX);
        assert_eq!(decode(&data[..header.length]), whole, "the rest counts");
    }
    let end = data.len().min(HEADER_BYTES_MAX + 64);
    for length in 0..end {
        match (decode(&data[..length]), &whole) {
            // Nothing is known yet: that can end in anything.
            (Ok(None), _) => assert!(length < HEADER_BYTES_MAX, "it waits for too much"),
            (early, _) => {
                assert_eq!(early, whole, "it was sure and changes its mind");
                return;
            }
        }
    }
}
