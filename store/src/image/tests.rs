//! Images: the builder against a plain map of pages.
