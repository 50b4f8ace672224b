// Where the log-sum-exp has no gradient.
fn load_dlse(i: u32) -> f32 { return 0.0; }
