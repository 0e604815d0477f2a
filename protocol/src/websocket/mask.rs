//! Masking (RFC 6455 §5.3): the same operation puts a mask on and takes it off.

/// XORs `bytes` with `mask`, whose first byte meets the first of them.
pub(super) fn apply(mask: [u8; 4], bytes: &mut [u8]) {
    // Eight bytes at a time: the compiler widens this to the machine's vectors.
    let [a, b, c, d] = mask;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

/// The mask as it meets the payload's byte number `index`.
pub(super) fn from_index(mask: [u8; 4], index: usize) -> [u8; 4] {
    let mut turned = mask;
    turned.rotate_left(index % 4);
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_at_a_time_gives_what_one_at_a_time_gives() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let plain: Vec<u8> = (0..=255).collect();
        for start in 0..=9 {
            for end in start..=40 {
                let mut bytes = plain[start..end].to_vec();
                apply(from_index(mask, start), &mut bytes);
                let expected: Vec<u8> = (start..end)
                    .map(|index| plain[index] ^ mask[index % 4])
                    .collect();
                assert_eq!(bytes, expected, "{start}..{end}");
            }
        }
    }
}
