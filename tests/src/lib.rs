//! roomful-tests
