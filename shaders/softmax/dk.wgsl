// dk += dsᵀ · q, where it is not found in a pass of its own (HAS_DK).

var<private> dk: Sums;

fn reset_dk() {
    if (HAS_DK) { reset_sums(&dk); }
}

// Leaves the gradients in place of the weights.
fn add_dk(w: Work, visit: Visit, tile: Tile, thread: u32) {
    if (HAS_DK) {
        give_gradients();
        accumulate(SCORES, &dk, w, visit, tile, thread);
    }
}

fn write_dk(w: Work, token: u32, d: u32, i: u32, c: u32, none: bool) {
    if (HAS_DK) { store_dk4(at_dk(w.batch, w.kv_head, key_of(w, token)) + 4u * d, HEAD_DIM - 4u * d, select(sum_at(&dk, i, c) * params.sum_factor, vec4f(), none)); }
}
