//! A back end: it calls the operations of the admin listener.

use std::net::SocketAddr;

use serde_json::Value;

use crate::http::{self, Response};
use crate::server::Server;

/// Who knows the admin key of a server.
#[derive(Debug, Clone)]
pub struct BackEnd {
    /// Where the admin listener is.
    pub address: SocketAddr,
    /// The key.
    pub key: String,
}

impl BackEnd {
    /// The back end of a server that has made its key itself.
    ///
    /// # Panics
    /// There is no key.
    pub async fn of(server: &Server) -> Self {
        let address = server.admin_address().await;
        let file = server.dir().join("roomful-data/admin.key");
        let key = std::fs::read_to_string(file).unwrap().trim().to_owned();
        Self { address, key }
    }

    /// Calls an operation that works.
    ///
    /// # Panics
    /// It doesn't.
    pub async fn ok(&self, line: &str, body: Option<&Value>) -> Value {
        let response = self.call(line, &[], body).await;
        assert_eq!(response.status, 200, "{line}: {}", response.text());
        read(&response)
    }

    /// Calls an operation that doesn't work: the status, and the error in the body.
    ///
    /// # Panics
    /// It does.
    pub async fn refused(&self, line: &str, body: Option<&Value>) -> (u16, Value) {
        let response = self.call(line, &[], body).await;
        assert!(response.status >= 400, "{line}: {}", response.text());
        (response.status, read(&response)["error"].clone())
    }

    /// Calls an operation: method and target, as in `GET /v1/rooms`, more headers, and a body of JSON.
    pub async fn call(
        &self,
        line: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Response {
        let body = body.map(Value::to_string).unwrap_or_default();
        let bearer = format!("Bearer {}", self.key);
        let mut all = vec![("authorization", &*bearer)];
        all.extend(headers);
        http::send(self.address, line, &all, &body).await
    }
}

/// The JSON of a response.
///
/// # Panics
/// It is none.
#[must_use]
pub fn read(response: &Response) -> Value {
    assert_eq!(response.header("content-type"), Some("application/json"));
    serde_json::from_slice(&response.body).unwrap()
}
