// Boolean mask: a key is visible where mask[batch, head, query, key] is not zero.

fn mask(at: Position) -> bool {
    let row = row_of(params.mask, at.batch, at.head, at.query, params.queries);
    return load_mask(row + min(at.key, params.keys - 1u)) != 0.0;
}
