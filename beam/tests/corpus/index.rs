//! Bytes as an index file: opened and then sound, or refused; never a panic.

use beam::{Trie, TrieDelta};
use rqvae::Code;
use serde_json::Value;
use std::fs;

/// Whether `data` opens as an index; what opens is walked through.
///
/// # Panics
/// When what was opened is not sound.
pub(crate) fn run(data: &[u8]) -> bool {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("index");
    fs::write(&path, data).expect("room on the disk");
    let Ok(trie) = Trie::map(&path) else { return false };
    let mut leaves = 0;
    walk(&trie, &mut Vec::new(), Trie::ROOT, &mut leaves);
    assert_eq!(leaves, trie.nodes(trie.levels()));
    let mut delta = TrieDelta::new(&trie);
    if let Some(item) = trie.in_order().first() {
        assert!(delta.remove(*item));
    }
    assert!(delta.fold().items_total() <= trie.items_total());
    true
}

fn walk(trie: &Trie, path: &mut Vec<Code>, node: u32, leaves: &mut usize) {
    if path.len() == trie.levels() {
        *leaves += 1;
        assert_eq!(trie.find(path), Some(node));
        assert!(trie.items(node).iter().all(|item| trie.leaf(*item).is_some()));
        return;
    }
    let (codes, children) = trie.children(path.len(), node);
    assert_eq!(codes.len(), children.len());
    for (code, child) in codes.iter().zip(children) {
        path.push(code);
        walk(trie, path, child, leaves);
        path.pop();
    }
}

/// The same file under the digest of what it holds; `None` where there is no header to put it in.
pub(crate) fn repaired(data: &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(u64::from_le_bytes(data.get(..8)?.try_into().ok()?)).ok()?;
    let text = data.get(8..length.checked_add(8)?)?;
    let arena = &data[8 + length..];
    let mut header: Value = serde_json::from_slice(text).ok()?;
    let metadata = header.get_mut("__metadata__")?.as_object_mut()?;
    metadata.shift_remove("digest");
    let mut hasher = blake3::Hasher::new();
    hasher.update(Value::Object(metadata.clone()).to_string().as_bytes()).update(arena);
    metadata.insert("digest".into(), hasher.finalize().to_hex().to_string().into());
    let mut text = header.to_string().into_bytes();
    text.resize((text.len() + 8).next_multiple_of(64) - 8, b' ');
    Some([&(text.len() as u64).to_le_bytes(), text.as_slice(), arena].concat())
}
