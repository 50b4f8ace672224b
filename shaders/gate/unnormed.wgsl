// No norm.
const NORMED: bool = false;

fn norm_factor(r: u32) -> f32 { return 1.0; }
fn norm_weight(d: u32) -> f32 { return 1.0; }
