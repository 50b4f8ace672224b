//! Some of the cases: every kernel, and each feature once.

use super::Case;
use crate::{Caps, Result};
use std::collections::BTreeSet;

/// Which of the cases to take for a short run: the fewest that a greedy choice finds which run every kernel that all of them run on a
/// device with `caps`, and have every word of all names between them (features, types, layouts). In order.
///
/// # Errors
/// Those of planning a case.
pub fn sample<'a>(cases: impl IntoIterator<Item = &'a dyn Case>, caps: &Caps) -> Result<Vec<usize>> {
    let all = cases.into_iter().map(|case| features(case, caps)).collect::<Result<Vec<_>>>()?;
    let mut missing: BTreeSet<&String> = all.iter().flatten().collect();
    let mut chosen = BTreeSet::new();
    while !missing.is_empty() {
        let gain = |i: &usize| all[*i].iter().filter(|feature| missing.contains(feature)).count();
        // Of equals the first.
        let Some(best) = (0..all.len()).rev().max_by_key(gain) else { break };
        chosen.insert(best);
        all[best].iter().for_each(|feature| {
            missing.remove(feature);
        });
    }
    Ok(chosen.into_iter().collect())
}

/// What a case reaches: its kernels, its label, and the words of its name.
fn features(case: &dyn Case, caps: &Caps) -> Result<BTreeSet<String>> {
    let name = case.name();
    let mut found: BTreeSet<String> = case.kernels(caps)?.into_iter().map(|kernel| kernel.name).collect();
    found.extend(name.split_once(':').map(|(label, _)| label.to_string()));
    let words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    found.extend(words.filter(|word| word.len() > 1 && word.contains(char::is_alphabetic)).map(str::to_string));
    Ok(found)
}
