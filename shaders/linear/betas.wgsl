// How much of a correction the delta rule makes: beta of each token. Beyond [0, 2] it is clamped, and reported; without the tensor it is 1.
fn beta_of(t: Token) -> f32 {
    if (!HAS_BETA) { return 1.0; }
    return checked_beta(load_beta(at_beta(t.batch, t.head / BETA_GROUP, t.row)), t.row);
}
