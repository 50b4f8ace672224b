// Additive bias: score' = score + bias[batch, head, query, key]; BIAS_STEP is 0 where it has one for all keys.

fn bias(score: f32, at: Position) -> f32 {
    return score + load_bias(at_bias(at.batch, at.head, at.query) + at.key * BIAS_STEP);
}
