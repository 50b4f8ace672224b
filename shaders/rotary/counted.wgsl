// Positions are counted.
fn position_of(batch: u32, row: u32) -> u32 { return params.start + row * params.step; }
