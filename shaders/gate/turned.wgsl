// The rotary embedding of a row: at the position of its first token.
const TURNS: bool = true;

fn turn_of(batch: u32, row: u32, pair: u32) -> vec2f {
    let offset = select(offset_of(sequences[batch]), 0, params.side == 1u);
    let position = offset + i32(row * block_size());
    let turn = angle(u32(abs(position)), pair);
    return select(turn, vec2f(turn.x, -turn.y), position < 0);
}
