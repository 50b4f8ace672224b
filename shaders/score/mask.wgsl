// Boolean mask: a key is visible where mask[batch, head, query, key] is not zero; MASK_STEP is 0 where it has one for all keys.

fn mask(at: Position) -> bool {
    return load_mask(at_mask(at.batch, at.head, at.query) + at.key * MASK_STEP) != 0.0;
}
