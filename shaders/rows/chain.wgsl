// Which rows of y each row of x is named by, in ascending order: `chain[n]` is the first of them, `next[l]` the next one after l, NONE after the
// last. One workgroup goes over the index of a head, from its end, BLOCK rows a dispatch, WG of them at a time: those of a tile look for the next
// in the tile, or take what the tiles behind it have left in `chain`. Workgroup memory: 4·WG bytes.

var<workgroup> tile: array<u32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let indices = at_index(batch, head, 0u);
    let chains = at_chain(batch, head, 0u);
    let nexts = at_next(batch, head, 0u);
    let behind = (params.first.z + workgroup.x) * BLOCK;
    if (behind == 0u) {
        for (var n = thread; n < params.rows; n += WG) { store_chain(chains + n, NONE); }
        storageBarrier();
    }
    let begin = params.count - min(params.count, behind + BLOCK);
    var end = params.count - behind;
    while (end > begin) {
        let first = max(begin + WG, end) - WG;
        let l = first + thread;
        var own = NONE;
        if (l < end) { own = load_index(indices + l); }
        tile[thread] = own;
        workgroupBarrier();
        var following = NONE;
        var is_first = own < params.rows;
        if (own < params.rows) {
            var other = thread + 1u;
            while (other < end - first && tile[other] != own) { other++; }
            if (other < end - first) { following = first + other; } else { following = load_chain(chains + own); }
            for (var before = 0u; before < thread; before++) { is_first = is_first && tile[before] != own; }
        }
        if (l < end) { store_next(nexts + l, following); }
        // What was there has been read by all.
        storageBarrier();
        if (is_first) { store_chain(chains + own, l); }
        storageBarrier();
        workgroupBarrier();
        end = first;
    }
}
