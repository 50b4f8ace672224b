// Where the gradient of keys comes in a pass of its own.

fn reset_dk() {}

fn add_dk(w: Work, visit: Visit, tile: Tile, thread: u32) {}

fn write_dk(w: Work, token: u32, d: u32, i: u32, c: u32, none: bool) {}
