// Boolean mask: a key is visible where mask[batch, head, query, key] is not zero.

fn mask(at: Position) -> bool {
    return load_mask(row_of(params.mask, at.batch, at.head, at.query) + at.key) != 0.0;
}
