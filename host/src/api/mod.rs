//! Routes, one resource a file.

pub mod problem;
