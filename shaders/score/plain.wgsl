// What changes a score: nothing. The score comes in as params.q_factor · q·k and leaves in log2 units; here
// params.q_factor = scale · log2(e) does both.

const SCORED: bool = false;

fn score(s: f32, r: Row, c: Col, w: Work) -> f32 {
    return s;
}
