// Gates are at most 0, betas within [0, 2]. One that is not is clamped, NaN counts as 0, and the first row of a segment that has one is
// reported: `problem` [entries, heads, 1, segments] gets 2 · row + 1 for a gate, 2 · row + 2 for a beta, else 0. Below −104, where e^g is
// 0 in f32, a gate counts as −104. (momentum/steps.wgsl has numbers of its own.)

const NO_ROW: u32 = 0xffffffffu;
const LEAST_GATE: f32 = -104.0;

var<private> wrong: u32 = NO_ROW;
var<workgroup> first_wrong: atomic<u32>;

fn checked_gate(g: f32, row: u32) -> f32 {
    let bits = bitcast<u32>(g);
    // −0 and below, down to −∞; what decides is bits.
    let good = bits == 0u || (bits >= 0x80000000u && bits <= 0xff800000u);
    wrong = min(wrong, select(2u * row, NO_ROW, good));
    // The bits of numbers below 0 go up as they go down.
    let hard = bits > bitcast<u32>(LEAST_GATE);
    return select(0.0, select(g, LEAST_GATE, hard), good);
}

fn checked_beta(beta: f32, row: u32) -> f32 {
    let bits = bitcast<u32>(beta);
    // The bits of numbers from 0 up go up as they do: those of 2, of infinity.
    let good = bits <= 0x40000000u || bits == 0x80000000u;
    wrong = min(wrong, select(2u * row + 1u, NO_ROW, good));
    return select(select(0.0, 2.0, bits <= 0x7f800000u), beta, good);
}

// For the REPORTED heads that share what was seen.
fn report(w: Work, thread: u32) {
    if (thread == 0u) { atomicStore(&first_wrong, NO_ROW); }
    workgroupBarrier();
    atomicMin(&first_wrong, wrong);
    workgroupBarrier();
    for (var head = thread; head < REPORTED; head += WG) {
        store_problem(at_problem(w.batch, w.head * REPORTED + head, 0u) + w.place, atomicLoad(&first_wrong) + 1u);
    }
}
