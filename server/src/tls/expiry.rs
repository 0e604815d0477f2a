//! When a certificate expires.

use rustls::pki_types::CertificateDer;
use simple_asn1::ASN1Block;

/// The last second of a certificate, since 1970 (RFC 5280 §4.1.2.5); `None` where it can't be found.
pub(super) fn expires_at_s(certificate: &CertificateDer<'_>) -> Option<i64> {
    let blocks = simple_asn1::from_der(certificate).ok()?;
    let [ASN1Block::Sequence(_, parts)] = &blocks[..] else {
        return None;
    };
    let ASN1Block::Sequence(_, fields) = parts.first()? else {
        return None;
    };
    // The one field that is two times: not before, and not after.
    fields.iter().find_map(|field| match field {
        ASN1Block::Sequence(_, times) => match &times[..] {
            [from, until] if seconds(from).is_some() => seconds(until),
            _ => None,
        },
        _ => None,
    })
}

fn seconds(block: &ASN1Block) -> Option<i64> {
    match block {
        ASN1Block::UTCTime(_, time) | ASN1Block::GeneralizedTime(_, time) => {
            Some(time.assume_utc().unix_timestamp())
        }
        _ => None,
    }
}
