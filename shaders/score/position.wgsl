// What changes a score: a chain of functions  fn NAME(score: f32, at: Position) -> f32  on natural units, scale · q·k first,
// and of masks  fn NAME(at: Position) -> bool.  src/shader.rs writes `score`, which calls those that are in use, in order,
// and ends in log2 units, and `unveiled`, which asks every mask. With no function in use params.q_factor holds the factor
// log2(e) already, and `score` does nothing.

// Positions within the sequence; `head` is the query head.
struct Position { batch: u32, head: u32, query: u32, key: u32 }

fn position_of(r: Row, c: Col, w: Work) -> Position {
    return Position(w.batch, w.head, r.token, c.token);
}
