// The workgroups of a head are its segments' tiles of COLS columns.
fn work_of(workgroup: vec3u) -> Work {
    let tiles = (HEAD_DIM_V + COLS - 1u) / COLS;
    let at = params.first.z + workgroup.x;
    return segment_at(params.first.x + workgroup.z, params.first.y + workgroup.y, at / tiles, at % tiles * COLS);
}
