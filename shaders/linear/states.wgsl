// Where the state begins and ends: FROM and TO of src/linear/ends.rs.

const FROM_H0: u32 = 1u;
// Its rows are this one's columns.
const FROM_H0_TURNED: u32 = 2u;
// In place.
const FROM_HT: u32 = 3u;
// What a segment begins with, as scan.wgsl has left it.
const FROM_SEGMENT: u32 = 4u;
// What recurrent.wgsl has kept before.
const FROM_KEPT: u32 = 5u;

// The last state is written.
const TO_HT: u32 = 1u;
// What the tokens of a segment leave, for scan.wgsl.
const TO_SEGMENT: u32 = 2u;

fn initial_state(w: Work, row: u32, column: u32) -> vec4f {
    if (FROM == FROM_H0) { return load_h04(at_h0(w.batch, w.head, row) + column, HEAD_DIM_V - column); }
    if (FROM == FROM_HT) { return load_ht4(at_ht(w.batch, w.head, row) + column, HEAD_DIM_V - column); }
    if (FROM == FROM_SEGMENT) {
        return load_states4(at_states(w.batch, w.head, w.place * HEAD_DIM + row) + column, HEAD_DIM_V - column);
    }
    var x = vec4f();
    if (FROM == FROM_H0_TURNED) {
        for (var e = 0u; e < 4u; e++) {
            if (column + e < HEAD_DIM_V) { x[e] = load_h0(at_h0(w.batch, w.head, column + e) + row); }
        }
    }
    return x;
}

fn write_state(w: Work, row: u32, column: u32, x: vec4f) {
    if (TO == TO_HT) { store_ht4(at_ht(w.batch, w.head, row) + column, HEAD_DIM_V - column, x); }
    if (TO == TO_SEGMENT) {
        store_states4(at_states(w.batch, w.head, w.place * HEAD_DIM + row) + column, HEAD_DIM_V - column, x);
    }
}
