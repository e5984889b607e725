//! All numbers of the hybrid.

use crate::rqt::RqtConfig;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The generative part, and how its beams and the memory share a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HybridConfig {
    /// The generative part.
    pub rqt: RqtConfig,
    /// Weight of its loss; 0 keeps its weights as they are.
    pub generative_weight: f32,
    /// Followers that are kept of each item.
    pub followers: usize,
    /// What an item's place among the followers of the history weighs where its place among the beams weighs 1.
    pub followed: f32,
    /// What its place by content to the history weighs.
    pub alike: f32,
    /// Added to each place before it is inverted: the larger it is, the less first places stand out.
    pub rank_offset: f32,
    /// Weight, in units of the content's, of the scores that a new item borrows from the warm items it is like.
    pub borrowed: f32,
    /// Weight, in the same units, of the probability by which a place of the list defends itself against new items.
    pub certainty: f32,
    /// Warm items that a new item borrows from.
    pub lenders: usize,
    /// Most of all places that new items get, on average over users, and never more than three times their part of the
    /// catalogue; each user's list has them where they promise most.
    pub new_share: f64,
}

impl Default for HybridConfig {
    fn default() -> Self {
        Self {
            rqt: RqtConfig::default(),
            generative_weight: 1.0,
            followers: 64,
            followed: 0.6,
            alike: 0.4,
            rank_offset: 10.0,
            borrowed: 3.0,
            certainty: 50.0,
            lenders: 10,
            new_share: 0.1,
        }
    }
}

impl HybridConfig {
    /// Checks every field.
    pub fn validate(&self) -> Result<()> {
        self.rqt.validate()?;
        let weights = [
            ("generative_weight", self.generative_weight),
            ("followed", self.followed),
            ("alike", self.alike),
            ("rank_offset", self.rank_offset),
            ("borrowed", self.borrowed),
            ("certainty", self.certainty),
        ];
        for (field, got) in weights {
            if !(got >= 0.0 && got.is_finite()) {
                return Err(Error::InvalidConfig { field, got: got.to_string(), expected: "0 or more".into() });
            }
        }
        for (field, got) in [("followers", self.followers), ("lenders", self.lenders)] {
            if !(1..=4096).contains(&got) {
                return Err(Error::InvalidConfig { field, got: got.to_string(), expected: "1 to 4096".into() });
            }
        }
        if !(0.0..=1.0).contains(&self.new_share) {
            let (field, got) = ("new_share", self.new_share.to_string());
            return Err(Error::InvalidConfig { field, got, expected: "0 to 1".into() });
        }
        Ok(())
    }
}
