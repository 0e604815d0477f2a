//! What decoding allocates: nothing for what a message announces, only for what it brings.
#![expect(
    unsafe_code,
    reason = "counting allocations takes a global allocator, which is an unsafe trait"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use roomful_protocol::codec::Encoding;

/// Counts the bytes that this thread asks for.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn allocated(work: impl FnOnce()) -> usize {
    let before = ALLOCATED.get();
    work();
    ALLOCATED.get() - before
}

/// Goal: an announced length costs nothing. Method: in every place that takes an array, a map, a text or bytes, announce
/// 2^32 − 1 of them and bring none.
#[test]
fn an_announced_length_allocates_nothing() {
    let places: [(&str, &[u8]); 20] = [
        ("the frame", b""),
        ("the type", b"\x92"),
        ("a batch's frames", b"\x92\x0a"),
        ("a token", b"\x93\x08\x07"),
        ("a room's name", b"\x93\x02\x07"),
        ("a position", b"\x94\x02\x07\xa1a"),
        ("a presence request", b"\x94\x06\x07\x03"),
        ("a payload", b"\x95\x04\x07\x03\xc0"),
        ("a payload's bytes", b"\x95\x04\x07\x03\xc0\x92\x00"),
        ("a later field", b"\x93\x09\x07"),
        ("a server batch's frames", b"\x92\x2d"),
        ("members", b"\x93\x26\x07\x92\x02\x94\x01\x01"),
        ("entries", b"\x93\x26\x07\x92\x03\x92"),
        ("changes", b"\x95\x25\x03\x01\x01"),
        ("a write's changes", b"\x94\x0b\x07\x03\x93\x00\xc0"),
        ("a watch's prefixes", b"\x94\x0b\x07\x03\x92\x03"),
        ("a lock's name", b"\x94\x0c\x07\x03\x92\x02"),
        ("changed keys", b"\x97\x2e\x03\x01\x01\xa1a\xc0"),
        ("a queue", b"\x98\x2f\x03\x01\x01\xa1l\x00\xc0"),
        ("items", b"\x93\x26\x07\x92\x05\x93\x92\x01\x01"),
    ];
    for (place, start) in places {
        for marker in [0xc6, 0xdb, 0xdd, 0xdf] {
            let message = [start, &[marker, 0xff, 0xff, 0xff, 0xff]].concat();
            let bytes = allocated(|| {
                assert!(Encoding::MessagePack.decode_client(&message).is_err());
                assert!(Encoding::MessagePack.decode_server(&message).is_err());
            });
            assert!(bytes < 4096, "{place}, {marker:02x}: {bytes} bytes");
        }
    }
}

#[test]
fn a_publish_allocates_its_payload_once() {
    let payload = vec![7; 60_000];
    let message = [b"\x95\x04\x07\x03\xc0\x92\x00\xc5\xea\x60", &payload[..]].concat();
    let bytes = allocated(|| assert!(Encoding::MessagePack.decode_client(&message).is_ok()));
    assert!((60_000..61_000).contains(&bytes), "{bytes} bytes");
}
