//! The built pages, inside the binary.
//!
//! Each file is a line of [`FILES`]. A browser keeps what it has and asks whether it is still good: the tag
//! is a hash of the bytes, so an unchanged file costs an empty answer.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

/// Path, content type, bytes.
const FILES: &[(&str, &str, &[u8])] = &[
    (
        "/",
        "text/html; charset=utf-8",
        include_bytes!("../../assets/index.html"),
    ),
    (
        "/app.js",
        "text/javascript; charset=utf-8",
        include_bytes!("../../assets/app.js"),
    ),
    (
        "/app.css",
        "text/css; charset=utf-8",
        include_bytes!("../../assets/app.css"),
    ),
    (
        "/favicon.svg",
        "image/svg+xml",
        include_bytes!("../../assets/favicon.svg"),
    ),
];

/// A route for each file.
pub(super) fn routes() -> Router {
    FILES
        .iter()
        .fold(Router::new(), |router, &(path, content_type, bytes)| {
            let tag = entity_tag(bytes);
            router.route(
                path,
                get(async move |headers: HeaderMap| answer(&headers, content_type, &tag, bytes)),
            )
        })
}

fn answer(
    headers: &HeaderMap,
    content_type: &'static str,
    tag: &str,
    bytes: &'static [u8],
) -> Response {
    let caching = [(header::ETAG, tag), (header::CACHE_CONTROL, "no-cache")];
    if is_current(headers, tag) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    (
        caching,
        [(header::CONTENT_TYPE, content_type)],
        Bytes::from_static(bytes),
    )
        .into_response()
}

/// Whether the client has this very file: `If-None-Match`, compared weakly as RFC 9110 §13.1.2 asks.
fn is_current(headers: &HeaderMap, tag: &str) -> bool {
    let lines = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|line| line.to_str().ok());
    let mut known = lines.flat_map(|line| line.split(',')).map(str::trim);
    known.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

/// A strong tag: the first 64 bits of the SHA-256 of the bytes.
fn entity_tag(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let digits: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("\"{digits}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists, weak tags and the star are all ways to say "I have it"; another tag is not.
    #[test]
    fn a_tag_is_found_however_the_client_writes_it() {
        let tag = entity_tag(b"page");
        for (value, current) in [
            (tag.clone(), true),
            (format!("W/{tag}"), true),
            (format!("\"other\", {tag}"), true),
            ("*".to_owned(), true),
            ("\"other\"".to_owned(), false),
            (tag.trim_matches('"').to_owned(), false),
            (entity_tag(b"pagf"), false),
        ] {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, value.parse().unwrap())]);
            assert_eq!(is_current(&headers, &tag), current, "{value}");
        }
        assert!(!is_current(&HeaderMap::new(), &tag));
    }
}
