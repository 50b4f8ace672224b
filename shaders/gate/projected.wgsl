// The features of a tile's rows after the linear map, for all threads. Workgroup memory: 16·ROWS·WIDTH4 bytes.

var<workgroup> projected: array<vec4f, ROWS * WIDTH4>;

fn share_projected(thread: u32) {
    for (var i = 0u; i < PART; i++) {
        let r = row_of_part(thread, i);
        if (r != NONE) { projected[r * WIDTH4 + thread % WIDTH4] = sums[i]; }
    }
    workgroupBarrier();
}

fn element(r: u32, d: u32) -> f32 {
    return projected[r * WIDTH4 + d / 4u][d % 4u];
}
