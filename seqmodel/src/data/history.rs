//! Every user's interactions in order, stored flat.

use rqvae::ItemIdx;

/// Who a history is of, as far as a model may know: a hash of the user's id, the same on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserHash(pub u64);

impl UserHash {
    /// The first 8 bytes of the BLAKE3 digest of an id.
    pub fn of(id: &str) -> Self {
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..8]);
        Self(u64::from_le_bytes(first))
    }
}

/// What a model reads of one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History<'a> {
    /// Oldest first.
    pub items: &'a [ItemIdx],
    /// Whose they are, where that is known.
    pub user: Option<UserHash>,
}

/// Items of nobody known.
impl<'a, T: AsRef<[ItemIdx]> + ?Sized> From<&'a T> for History<'a> {
    fn from(items: &'a T) -> Self {
        Self { items: items.as_ref(), user: None }
    }
}

/// Histories of all users, oldest interaction first.
#[derive(Debug, Clone, Default)]
pub struct Histories {
    items: Vec<ItemIdx>,
    starts: Vec<usize>,
    hashes: Vec<Option<UserHash>>,
}

impl Histories {
    /// One list per user, of nobody known.
    pub fn new(users: Vec<Vec<ItemIdx>>) -> Self {
        Self::of_users(users.into_iter().map(|items| (None, items)))
    }

    /// One list per user, with who that is where it is known.
    pub fn of_users(users: impl IntoIterator<Item = (Option<UserHash>, Vec<ItemIdx>)>) -> Self {
        let mut all = Self { items: Vec::new(), starts: vec![0], hashes: Vec::new() };
        for (hash, items) in users {
            all.items.extend(items);
            all.starts.push(all.items.len());
            all.hashes.push(hash);
        }
        all
    }

    /// Who `user` is, where that is known.
    pub fn hash(&self, user: usize) -> Option<UserHash> {
        self.hashes.get(user).copied().flatten()
    }

    /// Number of users.
    pub fn users(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Number of interactions.
    pub fn interactions(&self) -> usize {
        self.items.len()
    }

    /// The interactions of `user`.
    pub fn of(&self, user: usize) -> &[ItemIdx] {
        &self.items[self.starts[user]..self.starts[user + 1]]
    }

    /// All users' interactions in user order.
    pub fn iter(&self) -> impl Iterator<Item = &[ItemIdx]> {
        (0..self.users()).map(|user| self.of(user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_hashes_that_never_change() {
        assert_eq!(UserHash::of("u1"), UserHash(9_509_899_421_402_044_330));
        assert_ne!(UserHash::of("u1"), UserHash::of("u2"));
        let histories = Histories::of_users([(Some(UserHash(7)), vec![ItemIdx(1)]), (None, Vec::new())]);
        assert_eq!((histories.hash(0), histories.hash(1), histories.hash(2)), (Some(UserHash(7)), None, None));
        assert_eq!((histories.users(), histories.of(0)), (2, &[ItemIdx(1)][..]));
    }
}
