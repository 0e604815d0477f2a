//! roomful-client
