// Titans' linear memory with momentum (arXiv 2501.00663). For each token, with M the memory, S the momentum, and M' the memory that the token's
// chunk of CHUNK begins with:
//
//   e = M'ᵀ k − v,  S ← η S − θ k eᵀ,  M ← (1 − α) M + S,  o = scale · Mᵀ q
//
// M and S are [HEAD_DIM, HEAD_DIM_V], f32; α, η, θ are the first three of a token's `steps`. A workgroup takes COLS columns of both, and goes over
// a stretch of params.segment tokens. Thread (lane, quad) keeps four columns of every LANES-th four rows in registers.
//
// Where states are KEPT, `states` has slots of 2 · HEAD_DIM rows, M above S: one for each token of a segment; one for gradients; then one for
// what each segment of SEGMENT tokens begins with. Segments begin anew in each UNIT of tokens: several whole chunks, or one. Elsewhere the states
// go on in place, in `memory` and `momentum`, whatever the slot.

const QUADS: u32 = COLS / 4u;
const LANES: u32 = WG / QUADS;
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const PART: u32 = (D4 + LANES - 1u) / LANES;
const TILES: u32 = (HEAD_DIM_V + COLS - 1u) / COLS;
const GRADIENTS: u32 = SEGMENT;
const SEGMENTS: u32 = (UNIT + SEGMENT - 1u) / SEGMENT;

// Tokens [begin, end) on the way, of an entry's head; columns from `column` on.
struct Stretch { batch: u32, head: u32, column: u32, begin: u32, end: u32 }

var<private> memory: array<array<vec4f, 4>, PART>;
var<private> momentum: array<array<vec4f, 4>, PART>;

fn stretch_of(workgroup: vec3u, last_first: bool) -> Stretch {
    let batch = params.first.x + workgroup.z;
    let at = params.first.z + workgroup.x;
    let tokens = sequences[batch].y;
    let stretches = (tokens + params.segment - 1u) / params.segment;
    var number = at / TILES;
    // Beyond the entry's first stretch: without tokens.
    if (last_first) { number = select(stretches, stretches - 1u - number, number < stretches); }
    let begin = min(number * params.segment, tokens);
    return Stretch(batch, params.first.y + workgroup.y, at % TILES * COLS, begin, min(begin + params.segment, tokens));
}

// The first of a thread's four columns, and the same inside of a row.
fn column_of(s: Stretch, thread: u32) -> u32 { return s.column + 4u * (thread % QUADS); }
fn inside_row(column: u32) -> u32 { return min(column, (HEAD_DIM_V - 1u) / 4u * 4u); }

fn token_of(s: Stretch, n: u32) -> Token {
    let sequence = sequences[s.batch];
    return Token(s.batch, s.head, sequence.x + select(n, sequence.y - 1u - n, params.reverse == 1u));
}

// The place of token n in its segment; the slot of what a segment begins with that has token n.
fn place_in_segment(n: u32) -> u32 { return n % UNIT % SEGMENT; }
fn slot_of(n: u32) -> u32 { return SEGMENT + 1u + n / UNIT * SEGMENTS + n % UNIT / SEGMENT; }

// Four rows: 4 · row_of(i), … Past the last, keys and queries are 0.
fn row_of(i: u32, thread: u32) -> u32 { return thread / QUADS + LANES * i; }
fn inside_of(d: u32) -> u32 { return 4u * min(d, D4 - 1u); }

fn key_of(t: Token, d: u32) -> vec4f {
    let k = load_k4(at_k(t.batch, t.head / params.groups.y, t.row) + inside_of(d), HEAD_DIM - inside_of(d));
    return select(vec4f(), k, d < D4);
}

fn query_of(t: Token, d: u32) -> vec4f {
    let q = load_q4(at_q(t.batch, t.head / params.groups.x, t.row) + inside_of(d), HEAD_DIM - inside_of(d));
    return select(vec4f(), q, d < D4);
}

// A token's error, in four columns.
fn error_of(t: Token, column: u32) -> vec4f {
    let inside = inside_row(column);
    let e = load_errors4(at_errors(t.batch, t.head, t.row) + inside, HEAD_DIM_V - inside);
    return select(vec4f(), e, column < HEAD_DIM_V);
}

fn store_error(t: Token, column: u32, e: vec4f) {
    if (column < HEAD_DIM_V) { store_errors4(at_errors(t.batch, t.head, t.row) + column, HEAD_DIM_V - column, e); }
}

// Row `row` of a slot, M's where it is below HEAD_DIM, else S's.
fn slot_row(s: Stretch, slot: u32, row: u32, column: u32) -> vec4f {
    let n = HEAD_DIM_V - column;
    if (KEPT == 1u) { return load_states4(at_states(s.batch, s.head, 2u * HEAD_DIM * slot + row) + column, n); }
    if (row < HEAD_DIM) { return load_memory4(at_memory(s.batch, s.head, row) + column, n); }
    return load_momentum4(at_momentum(s.batch, s.head, row - HEAD_DIM) + column, n);
}

fn store_row(s: Stretch, slot: u32, row: u32, column: u32, x: vec4f) {
    let n = HEAD_DIM_V - column;
    if (KEPT == 1u) {
        store_states4(at_states(s.batch, s.head, 2u * HEAD_DIM * slot + row) + column, n, x);
    } else if (row < HEAD_DIM) {
        store_memory4(at_memory(s.batch, s.head, row) + column, n, x);
    } else {
        store_momentum4(at_momentum(s.batch, s.head, row - HEAD_DIM) + column, n, x);
    }
}

fn load_slot(s: Stretch, slot: u32, thread: u32) {
    let column = column_of(s, thread);
    for (var i = 0u; i < PART; i++) {
        for (var r = 0u; r < 4u; r++) {
            let row = 4u * row_of(i, thread) + r;
            memory[i][r] = vec4f();
            momentum[i][r] = vec4f();
            if (row < HEAD_DIM && column < HEAD_DIM_V) {
                memory[i][r] = slot_row(s, slot, row, column);
                momentum[i][r] = slot_row(s, slot, HEAD_DIM + row, column);
            }
        }
    }
}

fn store_slot(s: Stretch, slot: u32, thread: u32) {
    let column = column_of(s, thread);
    for (var i = 0u; i < PART; i++) {
        for (var r = 0u; r < 4u; r++) {
            let row = 4u * row_of(i, thread) + r;
            if (row < HEAD_DIM && column < HEAD_DIM_V) {
                store_row(s, slot, row, column, memory[i][r]);
                store_row(s, slot, HEAD_DIM + row, column, momentum[i][r]);
            }
        }
    }
}

// Both after a token with error e.
fn absorb(t: Token, step: vec4f, e: vec4f, thread: u32) {
    for (var i = 0u; i < PART; i++) {
        let k = key_of(t, row_of(i, thread));
        for (var r = 0u; r < 4u; r++) {
            let next = fma(vec4f(step.y), momentum[i][r], -step.z * k[r] * e);
            momentum[i][r] = next;
            memory[i][r] = fma(vec4f(-step.x), memory[i][r], memory[i][r]) + next;
        }
    }
}
