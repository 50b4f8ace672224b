// Gates and betas from what a model computes, x [batch, heads, tokens, WIDTH]:
//
//   SOFTPLUS   g = −exp(a_log) · softplus(x + dt_bias)     a_log [1, heads, 1, 1], dt_bias [1, heads, 1, WIDTH]
//   SIGMOID    beta = gain · 1 / (1 + e^(−x))
//
// Both to a few places, near 0 too: a gate counts once for every token after it.

const SOFTPLUS: u32 = 0u;
const AT: u32 = (WIDTH + 3u) / 4u * 4u;

fn exp_of(x: f32) -> f32 {
    let parts = exp_parts(min(x, 88.0));
    return fma(parts.y, parts.x, parts.y);
}

// ln (1 + e).
fn log_1_plus(e: f32) -> f32 {
    // 2 · artanh(e / (2 + e)), for e up to 1.
    let s = e / (2.0 + e);
    let t = s * s;
    let high = fma(t, fma(t, fma(t, fma(t, 1.0 / 15.0, 1.0 / 13.0), 1.0 / 11.0), 1.0 / 9.0), 1.0 / 7.0);
    return 2.0 * s * fma(t, fma(t, fma(t, high, 1.0 / 5.0), 1.0 / 3.0), 1.0);
}

fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }

fn softplus(x: f32) -> f32 { return max(x, 0.0) + log_1_plus(exp_of(-abs(x))); }

fn sigmoid(x: f32) -> f32 {
    let e = exp_of(-abs(x));
    return select(e, 1.0, x >= 0.0) / (1.0 + e);
}

fn rate_of(head: u32) -> f32 {
    let a = load_a_log(at_a_log(0u, head, 0u));
    return select(exp_of(a), a, is_nan(a));
}

fn shifted(x: vec4f, head: u32, d: u32) -> vec4f {
    if (!HAS_DT_BIAS) { return x; }
    return x + load_dt_bias4(at_dt_bias(0u, head, 0u) + d, WIDTH - d);
}

// The gate or beta, and its derivative by x.
fn activated(x: f32, rate: f32) -> vec2f {
    var found = vec2f();
    if (KIND == SOFTPLUS) {
        found = -rate * vec2f(softplus(x), sigmoid(x));
    } else {
        let s = sigmoid(x);
        found = params.gain * vec2f(s, s * sigmoid(-x));
    }
    return select(found, vec2f(x), is_nan(x));
}

fn rate_if_any(head: u32) -> f32 {
    if (KIND == SOFTPLUS) { return rate_of(head); }
    return 1.0;
}
