// Where the state begins and ends: FROM and TO of src/linear/ends.rs. A walk that keeps states does so at every SEGMENT tokens.

const FROM_H0: u32 = 1u;
// Its rows are this one's columns.
const FROM_H0_TURNED: u32 = 2u;
// In place.
const FROM_HT: u32 = 3u;
// What a segment begins with, as scan.wgsl has left it.
const FROM_SEGMENT: u32 = 4u;
// What the walk itself has kept before.
const FROM_KEPT: u32 = 5u;
// The identity, from column UNIT_AT on, or, where ONES, 1 in that column; and the same turned.
const FROM_UNIT: u32 = 6u;
const FROM_UNIT_TURNED: u32 = 7u;

// The last state is written.
const TO_HT: u32 = 1u;
// What the tokens of a segment leave, for scan.wgsl.
const TO_SEGMENT: u32 = 2u;

// The segment of kept states, counted as the walk goes, that a stretch begins with.
fn first_kept(w: Work) -> u32 {
    let start = w.first - sequences[w.batch].x;
    if (params.reverse == 0u) { return start / SEGMENT; }
    return (sequences[w.batch].y + SEGMENT - 1u) / SEGMENT - (start + w.count + SEGMENT - 1u) / SEGMENT;
}

fn initial_state(w: Work, row: u32, column: u32) -> vec4f {
    if (FROM == FROM_H0) { return load_h04(at_h0(w.batch, w.head, row) + column, HEAD_DIM_V - column); }
    if (FROM == FROM_HT) { return load_ht4(at_ht(w.batch, w.head, row) + column, HEAD_DIM_V - column); }
    if (FROM == FROM_SEGMENT) {
        return load_states4(at_states(w.batch, w.head, w.place * HEAD_DIM + row) + column, HEAD_DIM_V - column);
    }
    if (FROM == FROM_KEPT) {
        return load_states4(at_states(w.batch, w.head, first_kept(w) * HEAD_DIM + row) + column, HEAD_DIM_V - column);
    }
    var x = vec4f();
    if (FROM == FROM_H0_TURNED) {
        for (var e = 0u; e < 4u; e++) {
            if (column + e < HEAD_DIM_V) { x[e] = load_h0(at_h0(w.batch, w.head, column + e) + row); }
        }
    }
    for (var e = 0u; e < 4u; e++) {
        if (FROM == FROM_UNIT) { x[e] = unit_at(row, column + e); }
        if (FROM == FROM_UNIT_TURNED) { x[e] = unit_at(column + e, row); }
    }
    return x;
}

fn unit_at(row: u32, column: u32) -> f32 {
    return f32(column == UNIT_AT + select(row, 0u, ONES == 1u));
}

fn write_state(w: Work, row: u32, column: u32, x: vec4f) {
    if (TO == TO_HT) { store_ht4(at_ht(w.batch, w.head, row) + column, HEAD_DIM_V - column, x); }
    if (TO == TO_SEGMENT) {
        store_states4(at_states(w.batch, w.head, w.place * HEAD_DIM + row) + column, HEAD_DIM_V - column, x);
    }
}
