//! TLS: the certificate that the public listener shows, and the settings of every handshake.
//!
//! `app` loads a certificate before anybody is let in; the doors of `http` ask for the current one at each handshake; a
//! task looks at the files now and then, and a signal may ask for it at once. A new pair of files that is not whole keeps the old one in use, so a handshake
//! never lacks a certificate, and connections that are open notice nothing. Sockets are left to others: that of the
//! handshake to `http`, what follows it to `transport`, which has [`Records`] for it.
//!
//! Sessions are resumed by tickets alone, which the server keeps no memory for. Their keys are made anew every few
//! hours and with each certificate, and never leave the process. Data ahead of the handshake's end (0-RTT) is never
//! taken: it could be played again.
//!
//! References: RFC 8446 (TLS 1.3), RFC 5246 (TLS 1.2), RFC 7301 (ALPN).

mod certificates;
mod expiry;
mod records;

pub use certificates::{CertificateError, Certificates, Files};
pub use records::{Received, Records};
