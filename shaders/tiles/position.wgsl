// Positions within the sequence, always below its lengths; `head` is the query head.
struct Position { batch: u32, head: u32, query: u32, key: u32, queries: u32, keys: u32 }
