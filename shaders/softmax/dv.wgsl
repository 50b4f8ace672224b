// dv += pᵀ · dout

var<private> dv: Sums;

fn reset_dv() { reset_sums(&dv); }

fn add_dv(w: Work, visit: Visit, tile: Tile, thread: u32) {
    accumulate(OF_VALUES, &dv, w, visit, tile, thread);
}

fn write_dv(w: Work, token: u32, d: u32, i: u32, c: u32, none: bool) {
    store_dv4(dv_row(w, token) + 4u * d, HEAD_DIM_V - 4u * d, select(dv[i][c], vec4f(), none));
}
