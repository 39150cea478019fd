//! Silicon models and scenario tests.
