// Chunks of CHUNK tokens lie side by side from the first row of an entry on, whichever way the walk goes.

// Tokens of the chunk that begins at token n of the walk: the other way round, the first chunk has what is left over.
fn tokens_of_chunk(w: Work, n: u32) -> u32 {
    let rest = (w.count + CHUNK - 1u) % CHUNK + 1u;
    return select(min(CHUNK, w.count - n), rest, params.reverse == 1u && n == 0u);
}
