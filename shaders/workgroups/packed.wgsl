// What a workgroup does, where sequences lie one after another along the rows of one tensor (cu_seqlens).
// sequences: first (first query, queries, first key, keys) of each sequence, then one entry for each tile of queries,
// (sequence, tile, 0, 0), so that short sequences cost no idle workgroups. A tile of sequence NONE is left over.

fn work_of(workgroup: vec3u) -> Work {
    let head = (params.first.y + workgroup.y) / SPLITS;
    let item = params.first.z + workgroup.x;
    let tile = sequences[params.sequences + item];
    let sequence = select(sequences[min(tile.x, params.sequences - 1u)], vec4u(), tile.x == NONE);
    return Work(tile.x, head, head / params.group, tile.y, item, sequence.x, sequence.y, sequence.z, sequence.w, (params.first.y + workgroup.y) % SPLITS);
}

// What lies behind a sequence's last row belongs to the next sequence.
fn rows_end(w: Work) -> u32 {
    return rows_of_sequence(w);
}
