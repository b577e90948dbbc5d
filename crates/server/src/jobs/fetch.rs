//! Fetches what templates name by URL.
