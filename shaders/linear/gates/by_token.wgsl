// Every token of a head has its own gate g ≤ 0. One that is positive or NaN counts as 0, and the first such row of a segment is
// reported: `problem` [entries, heads, 1, segments] gets row + 1, else 0. Below −104, where e^g is 0 in f32, a gate counts as −104.

const NO_ROW: u32 = 0xffffffffu;
const LEAST_GATE: f32 = -104.0;

var<private> wrong: u32 = NO_ROW;
var<workgroup> first_wrong: atomic<u32>;

fn gate_of(t: Token) -> f32 {
    let g = load_g(at_g(t.batch, t.head, t.row));
    let bits = bitcast<u32>(g);
    // −0 and below, down to −∞; what decides is bits.
    let good = bits == 0u || (bits >= 0x80000000u && bits <= 0xff800000u);
    wrong = min(wrong, select(t.row, NO_ROW, good));
    // The bits of numbers below 0 go up as they go down.
    let hard = bits > bitcast<u32>(LEAST_GATE);
    return select(0.0, select(g, LEAST_GATE, hard), good);
}

fn report(w: Work, thread: u32) {
    if (thread == 0u) { atomicStore(&first_wrong, NO_ROW); }
    workgroupBarrier();
    atomicMin(&first_wrong, wrong);
    workgroupBarrier();
    if (thread == 0u) { store_problem(at_problem(w.batch, w.head, 0u) + w.place, atomicLoad(&first_wrong) + 1u); }
}
