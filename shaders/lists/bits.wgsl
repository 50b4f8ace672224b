// Lists of tokens as a block mask whose blocks are a list's rows and one column: bit j % 32 of word j / 32 is token j. A thread makes a word.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let n = (params.first.z + workgroup.x) * WG + thread;
    if (n >= params.lists * params.words) { return; }
    let list = at_tokens(batch, head, n / params.words);
    let first = 32u * (n % params.words);
    let count = load_tokens(list);
    var bits = 0u;
    for (var place = place_in_list(list, count, first); place < count; place++) {
        let token = load_tokens(list + 1u + place);
        if (token >= first + 32u) { break; }
        bits |= 1u << (token - first);
    }
    store_bits(at_bits(batch, head, n / params.words) + n % params.words, bits);
}
