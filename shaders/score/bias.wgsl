// Additive bias: score' = score + bias[batch, head, query, key].

fn bias(score: f32, at: Position) -> f32 {
    return score + load_bias(row_of(params.bias, at.batch, at.head, at.query) + at.key);
}
