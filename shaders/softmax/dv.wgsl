// dv += pᵀ · dout, where it is not found in a pass of its own (HAS_DV).

var<private> dv: Sums;

fn reset_dv() {
    if (HAS_DV) { reset_sums(&dv); }
}

fn add_dv(w: Work, visit: Visit, tile: Tile, thread: u32) {
    if (HAS_DV) { accumulate(VALUES, &dv, w, visit, tile, thread); }
}

fn write_dv(w: Work, token: u32, d: u32, i: u32, c: u32, none: bool) {
    if (HAS_DV) { store_dv4(at_dv(w.batch, w.kv_head, key_of(w, token)) + 4u * d, HEAD_DIM_V - 4u * d, select(sum_at(&dv, i, c), vec4f(), none)); }
}
