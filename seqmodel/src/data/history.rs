//! Every user's interactions in order, stored flat.

use rqvae::ItemIdx;

/// Histories of all users, oldest interaction first.
#[derive(Debug, Clone, Default)]
pub struct Histories {
    items: Vec<ItemIdx>,
    starts: Vec<usize>,
}

impl Histories {
    /// One list per user.
    pub fn new(users: Vec<Vec<ItemIdx>>) -> Self {
        let mut starts = Vec::with_capacity(users.len() + 1);
        let mut items = Vec::with_capacity(users.iter().map(Vec::len).sum());
        starts.push(0);
        for user in users {
            items.extend(user);
            starts.push(items.len());
        }
        Self { items, starts }
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
