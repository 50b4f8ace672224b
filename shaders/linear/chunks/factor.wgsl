// By which all channels of token m's key have faded as token n reads it, n from m on.
fn factor_of(w: Work, n: u32, m: u32) -> f32 { return decay(n + 1u, m + 1u); }
