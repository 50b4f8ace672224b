// From logits to a block mask: of each row, the blocks that the selector chooses among those that it sees, and what is forced.
//
// chosen [batch, heads, rows, words]: bit j % 32 of word j / 32 is block j. A broken row chooses all that it sees: what it would
// have chosen is not known, and attention shows what is wrong with it. A workgroup takes a row, its threads every WG-th column or
// word. Workgroup memory: that of row.wgsl, of the selector and of lib/scan.wgsl.

const FORCE_FIRST: u32 = 1u;
const FORCE_OWN: u32 = 2u;
const FORCE_LAST_ROWS: u32 = 4u;

// Columns whose key (key_of) is larger than `least` are chosen, and of those with this key the first `equals`.
struct Choice { least: u32, equals: u32 }

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let number = params.first.z + workgroup.x;
    let row = row_of_logits(batch, head, number, thread);
    write_scores(row, batch, head, number, thread);
    let sequence = sequences[batch];
    let rows = (sequence.y + params.query_block - 1u) / params.query_block;
    var choice = Choice(0u, 0u);
    var all = row.broken || ((params.forced & FORCE_LAST_ROWS) != 0u && number + 2u >= rows);
    if (!all && row.seen > 0u) { choice = choose(row, batch, thread); }
    // The blocks that the row's own tokens lie in.
    let end = end_of_row(sequence, number);
    let own = max(i32(number * params.query_block) + offset_of(sequence), 0) / i32(params.key_block);
    let words = (params.cols + 31u) / 32u;
    var taken = 0u;
    for (var base = 0u; base < words; base += WG) {
        let word = base + thread;
        let count = min(max(row.seen, 32u * word) - 32u * word, 32u);
        var bits = 0u;
        var equal = 0u;
        if (!all) {
            for (var j = 0u; j < count; j++) {
                let key = key_of(row, 32u * word + j);
                bits |= u32(key > choice.least) << j;
                equal |= u32(key == choice.least) << j;
            }
        }
        var room = choice.equals - min(choice.equals, taken + sum_before(countOneBits(equal), thread));
        taken += sum_of_all();
        for (; room > 0u && equal != 0u; room--) {
            bits |= equal & (~equal + 1u);
            equal &= equal - 1u;
        }
        if ((params.forced & FORCE_FIRST) != 0u && word == 0u) { bits |= 1u; }
        if ((params.forced & FORCE_OWN) != 0u) {
            for (var j = max(u32(own), 32u * word); j * params.key_block < end && j < 32u * word + 32u; j++) { bits |= 1u << (j % 32u); }
        }
        let there = select((1u << count) - 1u, NONE, count == 32u);
        if (word < words) { store_chosen(at_chosen(batch, head, number) + word, select(bits, NONE, all) & there); }
    }
}

// The softmax of the logits is wanted too: 0 where a row does not see a block, NaN in a broken row.
fn write_scores(row: RowOfLogits, batch: u32, head: u32, number: u32, thread: u32) {
    if (!HAS_SCORES) { return; }
    let to = at_scores(batch, head, number);
    for (var col = thread; col < params.cols; col += WG) {
        var bits = 0u;
        if (col < row.seen && row.broken) { bits = NAN_BITS; }
        if (col < row.seen && !row.broken) { bits = bitcast<u32>(probability(row, col)); }
        store_scores(to + col, bits);
    }
}
