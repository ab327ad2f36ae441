//! Parts that several unit tests of this crate use.

/// Numbers that look random and are the same in every run, each below the bound that it is asked with.
pub(crate) fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |bound| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    }
}
