//! Trees: codecs, truncation, bit flips.
