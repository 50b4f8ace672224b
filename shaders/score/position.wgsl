// What changes a score: a chain of functions  fn NAME(score: f32, at: Position) -> f32  on natural units, scale · q·k first,
// and of masks  fn NAME(at: Position) -> bool.  Position is that of tiles/position.wgsl or tiles/boxes.wgsl.
// src/program/shader/chain.rs writes `score`, which calls those that are in use, in order, and ends in log2 units, and `mask_allows`,
// which asks every mask. With no function in use params.q_factor holds the factor log2(e) already, and `score` does nothing.

// A key that a score of −inf hides stays hidden, whatever a caller's function makes of −inf.
fn still_hidden(before: f32, after: f32) -> f32 {
    return select(after, before, bitcast<u32>(before) == MINUS_INFINITY_BITS);
}
