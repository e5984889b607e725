//! The terms of a text: words, pairs of neighbouring words, and character n-grams inside words.
//!
//! A term is known by a 64-bit hash whose two lowest bits say of which kind it is.

/// Kinds of terms: words, word pairs, character n-grams.
pub(crate) const KINDS: usize = 3;
/// Longest word, in characters; the rest of a longer one is ignored.
const MAX_WORD: usize = 40;
const GRAMS: std::ops::RangeInclusive<usize> = 3..=5;

/// Which kind of term a hash stands for, below [`KINDS`].
pub(crate) fn kind(term: u64) -> usize {
    (term & 3) as usize
}

/// Terms of `text` with their counts, ascending by hash.
pub(crate) fn count(text: &str) -> Vec<(u64, u32)> {
    let mut terms = Vec::new();
    let mut before: Option<Vec<char>> = None;
    let lower = text.to_lowercase();
    for word in lower.split(|c: char| !c.is_alphanumeric()) {
        if word.is_empty() {
            continue;
        }
        let word: Vec<char> = word.chars().take(MAX_WORD).collect();
        terms.push(hash(0, word.iter().copied()));
        if let Some(before) = &before {
            let pair = before.iter().chain([&' ']).chain(&word);
            terms.push(hash(1, pair.copied()));
        }
        let padded: Vec<char> = [' '].iter().chain(&word).chain([&' ']).copied().collect();
        for n in GRAMS {
            // A whole padded word is the word again.
            if n < padded.len() {
                terms.extend(padded.windows(n).map(|gram| hash(2, gram.iter().copied())));
            }
        }
        before = Some(word);
    }
    terms.sort_unstable();
    let mut counted: Vec<(u64, u32)> = Vec::with_capacity(terms.len());
    for term in terms {
        match counted.last_mut() {
            Some((last, count)) if *last == term => *count += 1,
            _ => counted.push((term, 1)),
        }
    }
    counted
}

/// FNV-1a over code points, mixed so that all bits depend on all characters.
fn hash(kind: u64, chars: impl Iterator<Item = char>) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325_u64 ^ kind;
    for c in chars {
        h = (h ^ u64::from(u32::from(c))).wrapping_mul(0x0100_0000_01b3);
    }
    h = (h ^ (h >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    h = (h ^ (h >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    ((h ^ (h >> 32)) & !3) | kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_pairs_and_grams_are_counted() {
        let terms = count("Ab, abcd ab");
        let of = |k: usize| -> Vec<u32> {
            let same = terms.iter().filter(|(t, _)| kind(*t) == k);
            same.map(|(_, n)| *n).collect()
        };
        let sorted = |mut counts: Vec<u32>| {
            counts.sort_unstable();
            counts
        };
        assert_eq!(sorted(of(0)), [1, 2]);
        assert_eq!(sorted(of(1)), [1, 1]);
        // " ab" three times; "ab " twice; "abc", "bcd", "cd "; " abc", "abcd", "bcd "; " abcd", "abcd ".
        assert_eq!(of(2).iter().sum::<u32>(), 3 + 2 + 3 + 3 + 2);
        assert_eq!(of(2).len(), 10);
        assert!(terms.is_sorted());
    }

    #[test]
    fn case_and_punctuation_do_not_matter() {
        assert_eq!(count("Nail-Polish!"), count("nail polish"));
        assert!(count(" .,; ").is_empty());
        assert!(!count("日本語").is_empty());
    }
}
