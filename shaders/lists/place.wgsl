// The first place of a list whose token is not below `token`, or `count`: its tokens ascend, behind their number.
fn place_in_list(list: u32, count: u32, token: u32) -> u32 {
    var first = 0u;
    var end = select(count, 0u, token == 0u);
    while (first < end) {
        let middle = (first + end) / 2u;
        if (load_tokens(list + 1u + middle) < token) { first = middle + 1u; } else { end = middle; }
    }
    return first;
}
