// The same gate at every token of a chunk, or none.
var<private> gate: f32;

fn sum_gates(w: Work, n0: u32, count: u32, thread: u32) { gate = gate_of(token_at(w, n0)); }
fn gates_between(late: u32, early: u32) -> f32 { return gate * f32(late - early); }
fn decay(late: u32, early: u32) -> f32 {
    if (HAS_SLOPES) { return exp(gates_between(late, early)); }
    return 1.0;
}
