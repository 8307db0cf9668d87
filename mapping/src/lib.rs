//! A map.
