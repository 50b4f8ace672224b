// What a workgroup does, where every batch entry has its own rows: tile `tile` of one batch entry and query head.
// sequences: (first query, queries, first key, keys) of each batch entry; the first ones are 0.

// Tiles come from both ends in turn: under a causal mask the last have the most to do, and neighbours then add up to the
// same work, whether a driver deals workgroups out one by one or in equal shares.
fn work_of(workgroup: vec3u) -> Work {
    let batch = params.first.x + workgroup.z;
    let head = (params.first.y + workgroup.y) / SPLITS;
    let step = workgroup.x / 2u;
    let tile = select(params.last_tile - step, params.first.z + step, workgroup.x % 2u == 1u);
    let sequence = sequences[batch];
    return Work(batch, head, head / params.group, tile, batch * params.tiles + tile, sequence.x, sequence.y, sequence.z, sequence.w, (params.first.y + workgroup.y) % SPLITS);
}

// Rows between a sequence's length and the tensor's end are written too (0 and −inf), so that nothing is left uninitialised.
fn rows_end(w: Work) -> u32 {
    return params.rows;
}
