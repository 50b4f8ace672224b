// Where nothing is known of what masks hide: they are asked in every tile.
fn load_full_blocks(i: u32) -> u32 { return 0u; }
