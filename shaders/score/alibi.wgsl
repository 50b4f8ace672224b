// Attention with linear biases (Press et al., arXiv 2108.12409): score' = score − slope[head] · |query + keys − queries − key|.
// slopes: a vec4 holds four heads.

fn alibi(score: f32, at: Position) -> f32 {
    let distance = abs(i32(at.query) + i32(at.keys) - i32(at.queries) - i32(at.key));
    return fma(-slopes[at.head / 4u][at.head % 4u], f32(distance), score);
}
