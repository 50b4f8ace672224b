// Additive bias: score' = score + bias[batch, head, query, key].

fn bias(score: f32, at: Position) -> f32 {
    let row = row_of(params.bias, at.batch, at.head, at.query, params.queries);
    return score + load_bias(row + min(at.key, params.keys - 1u));
}
