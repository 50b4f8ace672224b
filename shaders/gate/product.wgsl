// A product of small matrices:  sums[r] = Σ_n left(r, n) · right(n, four columns)
//
// A workgroup takes ROWS rows and all of up to 256 columns: thread (group, column) four columns of every GROUPS-th row. `left`
// passes through workgroup memory, `right` is read where it lies. Workgroup memory: 4·ROWS·CHUNK bytes.

const CHUNK: u32 = 32u;
const GROUPS: u32 = WG / WIDTH4;
const PART: u32 = (ROWS + GROUPS - 1u) / GROUPS;

struct Place { batch: u32, head: u32, row0: u32 }

var<workgroup> staged: array<f32, ROWS * CHUNK>;
var<private> sums: array<vec4f, PART>;

fn place_of(workgroup: vec3u) -> Place {
    return Place(params.first.x + workgroup.z, params.first.y + workgroup.y, (params.first.z + workgroup.x) * ROWS);
}

// The i-th row of a thread, within the tile; NONE if there is none.
fn row_of_part(thread: u32, i: u32) -> u32 {
    let row = thread / WIDTH4 + GROUPS * i;
    return select(NONE, row, row < ROWS && thread / WIDTH4 < GROUPS);
}

fn multiply(p: Place, count: u32, thread: u32) {
    let column = thread % WIDTH4;
    for (var i = 0u; i < PART; i++) { sums[i] = vec4f(); }
    for (var n0 = 0u; n0 < count; n0 += CHUNK) {
        for (var at = thread; at < ROWS * CHUNK; at += WG) {
            let row = p.row0 + at / CHUNK;
            let n = n0 + at % CHUNK;
            var x = 0.0;
            if (row < params.rows && n < count) { x = left(p, row, n); }
            staged[at] = x;
        }
        workgroupBarrier();
        for (var c = 0u; c < min(CHUNK, count - n0); c++) {
            let y = right(p, n0 + c, column);
            for (var i = 0u; i < PART; i++) {
                sums[i] = fma(vec4f(staged[min(row_of_part(thread, i), ROWS - 1u) * CHUNK + c]), y, sums[i]);
            }
        }
        workgroupBarrier();
    }
}

// Stores what a thread has summed up.
fn store_sums(p: Place, thread: u32) {
    let d = 4u * (thread % WIDTH4);
    for (var i = 0u; i < PART; i++) {
        let r = row_of_part(thread, i);
        if (r != NONE && p.row0 + r < params.rows) {
            store_to4(at_to(p.batch, p.head, p.row0 + r) + d, GATE_DIM - d, sums[i]);
        }
    }
}
