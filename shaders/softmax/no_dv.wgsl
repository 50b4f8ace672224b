// Where the gradient of values comes in a pass of its own.

fn reset_dv() {}

fn add_dv(w: Work, visit: Visit, tile: Tile, thread: u32) {}

fn write_dv(w: Work, token: u32, d: u32, i: u32, c: u32, none: bool) {}
