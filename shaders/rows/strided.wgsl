// Which row of a tensor a token of a sequence is: the tokens are the rows from the sequence's first one on. A token past the end (NONE)
// comes to some row of the tensor, so that a load is always in bounds; its value is not used.

fn query_of(w: Work, token: u32) -> u32 { return min(w.first_query + token, params.queries - 1u); }
fn key_of(w: Work, token: u32) -> u32 { return min(w.first_key + token, params.keys - 1u); }
