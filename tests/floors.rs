//! The structure of `src`: every arrow points downwards, only `gpu` names wgpu, and modules that lie side by side make no circle.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The floors, the lowest first. A module stands on those of lower floors; modules of one floor do not know one another.
const FLOORS: &[&[&str]] = &[
    // What everyone speaks of.
    &["dtype", "error", "small_map"],
    &["layout", "caps"],
    // A call as data.
    &["program"],
    // The kernel families: params and layouts to a program.
    &["block_mask", "packed", "merge", "rotary", "rows"],
    &["lists"],
    &["softmax"],
    &["flash", "neighborhood", "block_sparse", "linear"],
    &["score_reduction", "gate", "token_lists"],
    // The only floor that names wgpu.
    &["gpu"],
    // What checks and explains them.
    &["reference", "guide"],
    &["catalogue"],
];

type Module = Vec<String>;

/// A file of `src` without what only tests and rustdoc see.
struct Source {
    /// `use` items: the name here, and the path that it stands for.
    names: Vec<(String, Vec<String>)>,
    /// All paths that begin with `crate`, `super`, `self`, `wgpu` or a module of the file's own; not those of re-exports.
    paths: Vec<Vec<String>>,
}

fn modules(folder: &Path, at: &Module, found: &mut BTreeMap<Module, Source>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        let module: Module = at.iter().cloned().chain([name.clone()]).collect();
        if path.is_dir() {
            if !(at.is_empty() && name == "bin") {
                modules(&path, &module, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = if at.is_empty() && name == "lib" { vec![] } else { module };
            found.insert(module.clone(), read(&fs::read_to_string(&path).unwrap(), &module));
        }
    }
}

fn read(text: &str, module: &Module) -> Source {
    let tokens: TokenStream = text.parse().unwrap();
    let mut source = Source { names: vec![], paths: vec![] };
    walk(tokens, module, &mut source);
    source
}

fn punct(token: Option<&TokenTree>, c: char) -> bool {
    matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == c)
}

fn ident(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(name)) => Some(name.to_string()),
        _ => None,
    }
}

/// Where the item that begins at `i` ends: behind its `;` or its braces.
fn end_of_item(all: &[TokenTree], mut i: usize) -> usize {
    while i < all.len() {
        match &all[i] {
            TokenTree::Punct(p) if p.as_char() == ';' || p.as_char() == ',' => return i + 1,
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return i + 1,
            _ => i += 1,
        }
    }
    i
}

fn walk(tokens: TokenStream, module: &Module, source: &mut Source) {
    let all: Vec<TokenTree> = tokens.into_iter().collect();
    let mut i = 0;
    while i < all.len() {
        // Attributes: what is there for tests and rustdoc alone is left out.
        if punct(all.get(i), '#')
            && let Some(TokenTree::Group(group)) = all.get(i + 1)
        {
            let text: String = group.stream().to_string().split_whitespace().collect();
            i += 2;
            if ["cfg(test)", "cfg(doc)"].contains(&&*text) {
                while punct(all.get(i), '#') {
                    i += 2;
                }
                i = if ident(all.get(i)).as_deref() == Some("use") {
                    all[i..].iter().position(|t| punct(Some(t), ';')).unwrap() + i + 1
                } else {
                    end_of_item(&all, i)
                };
            }
            continue;
        }
        match ident(all.get(i)).as_deref() {
            Some("use") if !punct(all.get(i + 1), '<') => {
                let end = all[i..].iter().position(|t| punct(Some(t), ';')).unwrap() + i;
                let mut used = vec![];
                tree(&all[i + 1..end], vec![], &mut used);
                let public = i > 0
                    && (ident(all.get(i - 1)).as_deref() == Some("pub")
                        || (i > 1 && ident(all.get(i - 2)).as_deref() == Some("pub")));
                for (name, path) in used {
                    let path = absolute(path, module);
                    if !public {
                        source.paths.push(path.clone());
                    }
                    source.names.push((name, path));
                }
                i = end + 1;
                continue;
            }
            Some("mod") if matches!(all.get(i + 2), Some(TokenTree::Group(_))) => {
                let Some(TokenTree::Group(group)) = all.get(i + 2) else { unreachable!("matched") };
                let inner: Module = module.iter().cloned().chain(ident(all.get(i + 1))).collect();
                walk(group.stream(), &inner, source);
                i += 3;
                continue;
            }
            Some(first)
                if punct(all.get(i + 1), ':')
                    && punct(all.get(i + 2), ':')
                    && !(i > 0 && punct(all.get(i - 1), ':')) =>
            {
                let mut path = vec![first.to_string()];
                while punct(all.get(i + 1), ':') && punct(all.get(i + 2), ':') {
                    let Some(next) = ident(all.get(i + 3)) else { break };
                    path.push(next);
                    i += 3;
                }
                source.paths.push(absolute(path, module));
            }
            _ => {}
        }
        if let Some(TokenTree::Group(group)) = all.get(i) {
            walk(group.stream(), module, source);
        }
        i += 1;
    }
}

/// The paths of a `use` tree, each with the name that it gets.
fn tree(all: &[TokenTree], prefix: Vec<String>, found: &mut Vec<(String, Vec<String>)>) {
    for part in all.split(|token| punct(Some(token), ',')).filter(|part| !part.is_empty()) {
        let (mut path, mut i) = (prefix.clone(), 0);
        let mut name = None;
        while i < part.len() {
            match &part[i] {
                TokenTree::Ident(word) if word == "as" => {
                    name = ident(part.get(i + 1));
                    break;
                }
                TokenTree::Ident(word) if word == "self" && !path.is_empty() => {}
                TokenTree::Ident(word) => path.push(word.to_string()),
                TokenTree::Group(group) => {
                    tree(&group.stream().into_iter().collect::<Vec<_>>(), path.clone(), found);
                    path.clear();
                    break;
                }
                TokenTree::Punct(p) if p.as_char() == '*' => path.push("*".into()),
                _ => {}
            }
            i += 1;
        }
        if let Some(last) = path.last() {
            found.push((name.unwrap_or(last.clone()), path));
        }
    }
}

/// From the root on, where the path begins with `crate`, `super` or `self`; others stay as they are.
fn absolute(path: Vec<String>, module: &Module) -> Vec<String> {
    let mut at = module.clone();
    let mut rest = &path[..];
    match path[0].as_str() {
        "crate" => (at, rest) = (vec![], &path[1..]),
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|word| word == "super") {
                at.pop();
                rest = &rest[1..];
            }
        }
        _ => return path,
    }
    [vec!["crate".to_string()], at, rest.to_vec()].concat()
}

/// The module that has what a path names; None for another crate's.
fn home(path: &[String], from: &Module, all: &BTreeMap<Module, Source>, depth: usize) -> Option<Module> {
    assert!(depth < 20, "{path:?} of {from:?} stands for itself");
    let path = match path[0].as_str() {
        "crate" => path[1..].to_vec(),
        first => {
            let own: Module = from.iter().cloned().chain([first.to_string()]).collect();
            if !all.contains_key(&own) {
                let known = all[from].names.iter().find(|(name, target)| name == first && *target != path);
                let (_, target) = known?;
                return home(&[target.clone(), path[1..].to_vec()].concat(), from, all, depth + 1);
            }
            [from.clone(), path.to_vec()].concat()
        }
    };
    let mut module = vec![];
    let mut rest = &path[..];
    while let Some(next) = rest.first() {
        let deeper: Module = [module.clone(), vec![next.clone()]].concat();
        if !all.contains_key(&deeper) {
            break;
        }
        (module, rest) = (deeper, &rest[1..]);
    }
    let Some(name) = rest.first() else { return Some(module) };
    match all[&module].names.iter().find(|(known, _)| known == name) {
        Some((_, target)) => {
            let target = [target.clone(), rest[1..].to_vec()].concat();
            if target[0] == "crate" || all.contains_key(&[module.clone(), vec![target[0].clone()]].concat()) {
                home(&target, &module, all, depth + 1)
            } else {
                None
            }
        }
        None => Some(module),
    }
}

fn arrows() -> (BTreeMap<Module, Source>, BTreeSet<(Module, Module)>) {
    let mut all = BTreeMap::new();
    modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &vec![], &mut all);
    let mut found = BTreeSet::new();
    for (from, source) in &all {
        for path in &source.paths {
            if let Some(to) = home(path, from, &all, 0).filter(|to| to != from) {
                found.insert((from.clone(), to));
            }
        }
    }
    (all, found)
}

fn floor(module: &Module) -> usize {
    let place = FLOORS.iter().position(|floor| floor.contains(&&*module[0]));
    place.unwrap_or_else(|| panic!("{} stands on no floor", module.join("::")))
}

#[test]
fn arrows_point_downwards() {
    let (all, arrows) = arrows();
    let inner: Vec<_> = all.keys().filter(|module| !module.is_empty()).collect();
    assert!(inner.len() > 80 && arrows.len() > 200, "{} modules, {} arrows", inner.len(), arrows.len());
    inner.iter().for_each(|module| assert!(floor(module) < FLOORS.len()));
    let upwards: Vec<_> = arrows
        .iter()
        .filter(|(from, to)| !from.is_empty() && (to.is_empty() || (from[0] != to[0] && floor(from) <= floor(to))))
        .map(|(from, to)| format!("{} -> {}", from.join("::"), to.join("::")))
        .collect();
    assert!(upwards.is_empty(), "arrows upwards:\n{}", upwards.join("\n"));
}

#[test]
fn only_gpu_names_wgpu() {
    let (all, _) = arrows();
    let named = |source: &Source| {
        source.paths.iter().any(|path| path[0] == "wgpu" || path[..].starts_with(&["crate".into(), "wgpu".into()]))
    };
    let outside = all.iter().filter(|(module, source)| !module.is_empty() && module[0] != "gpu" && named(source));
    let outside: Vec<_> = outside.map(|(module, _)| module.join("::")).collect();
    assert!(outside.is_empty(), "wgpu is named in {}", outside.join(", "));
    assert!(all.iter().any(|(module, source)| module.first().is_some_and(|first| first == "gpu") && named(source)));
}

/// What is left of arrows when all that lead to nothing are taken away, again and again: circles, and what leads to them from below.
fn circles(mut arrows: BTreeSet<(String, String)>) -> BTreeSet<(String, String)> {
    loop {
        let before = arrows.len();
        let from: BTreeSet<String> = arrows.iter().map(|(from, _)| from.clone()).collect();
        arrows.retain(|(_, to)| from.contains(to));
        let to: BTreeSet<String> = arrows.iter().map(|(_, to)| to.clone()).collect();
        arrows.retain(|(from, _)| to.contains(from));
        if arrows.len() == before {
            return arrows;
        }
    }
}

#[test]
fn modules_of_one_folder_make_no_circle() {
    let (all, arrows) = arrows();
    let mut found = vec![];
    for folder in all.keys() {
        let inside = |module: &Module| module.starts_with(folder).then(|| module.get(folder.len()).cloned()).flatten();
        let between = arrows.iter().filter_map(|(from, to)| Some((inside(from)?, inside(to)?)));
        let left = circles(between.filter(|(from, to)| from != to).collect());
        found.extend(left.into_iter().map(|(from, to)| format!("{}: {from} -> {to}", folder.join("::"))));
    }
    assert!(found.is_empty(), "in circles:\n{}", found.join("\n"));
}
