//! Lists of tokens, by their definition.

/// Whether each list has each of so many keys: [lists, keys] of tokens [lists, capacity], u32, where a list ends at its first `u32::MAX`. A
/// token that is not below the number of keys, or not above all that count before it, does not count. A list is a row of blocks of one key: see
/// [`super::ChosenBlocks`].
///
/// ```
/// use wgpu_attention::reference::listed_tokens;
/// let listed = listed_tokens(&[0, 2, 1, 3, u32::MAX, 1], 3, 4);
/// assert_eq!(listed, [true, false, true, false, false, false, false, true]);
/// ```
pub fn listed_tokens(tokens: &[u32], capacity: usize, keys: usize) -> Vec<bool> {
    let mut listed = vec![];
    for list in tokens.chunks(capacity.max(1)) {
        let mut own = vec![false; keys];
        let mut next = 0;
        for &token in list.iter().take_while(|&&token| token != u32::MAX) {
            let token = token as usize;
            if (next..keys).contains(&token) {
                own[token] = true;
                next = token + 1;
            }
        }
        listed.extend(own);
    }
    listed
}
