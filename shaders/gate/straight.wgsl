// No rotary embedding.
const TURNS: bool = false;

fn turn_of(batch: u32, row: u32, pair: u32) -> vec2f { return vec2f(1.0, 0.0); }
