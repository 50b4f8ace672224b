// The feature map of keys and queries, row by row: φ(n) with n = x, or, where NORMS, n = x / √(Σ x² + ε). FEATURES numbers come out of WIDTH:
//
//   MAP 0   n
//   MAP 1   n + 1 above 0, else e^n                             elu(n) + 1
//   MAP 2   max(n, 0)
//   MAP 3   1, √s · n_i, s/√2 · n_i², s · n_i n_j for i < j     φ(q) · φ(k) = 1 + s q·k + (s q·k)² / 2 with s = params.gain (BASED,
//                                                               arXiv 2402.18668); row by row of the upper triangle, i ≤ j
//
// A thread takes a row.

const ELU: u32 = 1u;
const RELU: u32 = 2u;
const TAYLOR: u32 = 3u;
const EPSILON: f32 = 1e-6;
const X4: u32 = (WIDTH + 3u) / 4u;

// n.
var<private> row: array<vec4f, X4>;

fn n_at(d: u32) -> f32 { return row[d / 4u][d % 4u]; }

// Reads a row of x; returns what it is multiplied by.
fn load_row(at: u32) -> f32 {
    var squares = 0.0;
    for (var d = 0u; d < X4; d++) {
        row[d] = load_q4(at + 4u * d, WIDTH - 4u * d);
        squares += dot(row[d], row[d]);
    }
    if (NORMS == 0u) { return 1.0; }
    let factor = 1.0 / sqrt(squares + EPSILON);
    for (var d = 0u; d < X4; d++) { row[d] *= factor; }
    return factor;
}

// A map that takes each number by itself, and its slope.
fn mapped(n: vec4f) -> vec4f {
    if (MAP == ELU) { return select(exp(min(n, vec4f())), n + 1.0, n > vec4f()); }
    if (MAP == RELU) { return max(n, vec4f()); }
    return n;
}

fn slope_of(n: vec4f) -> vec4f {
    if (MAP == ELU) { return select(exp(min(n, vec4f())), vec4f(1.0), n > vec4f()); }
    if (MAP == RELU) { return select(vec4f(), vec4f(1.0), n > vec4f()); }
    return vec4f(1.0);
}

// Factor of the pair i ≤ j.
fn pair_factor(i: u32, j: u32) -> f32 {
    return params.gain * select(1.0, 0.70710678118654752, i == j);
}
