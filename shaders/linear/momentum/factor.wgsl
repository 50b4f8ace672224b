// With momentum (shared.wgsl), what token m of a chunk absorbed counts c(n, m) in the memory after token n, and beta is θ:
//
//   c(n, m) = (1 − α_n) c(n − 1, m) + Π_(m < s ≤ n) η_s,   c(m, m) = 1
//
// A token's error reads the memory that its own chunk, of ERRORS tokens, begins with: where it INVERTS, the factor is c of that. Each thread
// asks for one m, of all n in turn.

var<private> counts: f32;
var<private> kept_momentum: f32;
// c of the memory that errors read.
var<private> before: f32;

fn sum_gates(w: Work, n0: u32, count: u32, thread: u32) {}

fn beta_of(t: Token) -> f32 { return step_of(t).z; }

fn factor_of(w: Work, n: u32, m: u32) -> f32 {
    if (n == m + INVERTS) {
        counts = 1.0;
        kept_momentum = 1.0;
        before = 0.0;
    }
    if (n % ERRORS == 0u) { before = counts; }
    if (n > m) {
        let step = step_of(token_at(w, n));
        kept_momentum *= step.y;
        counts = fma(-step.x, counts, counts) + kept_momentum;
    }
    return select(counts, before, INVERTS == 1u);
}
