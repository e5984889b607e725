//! Softmax against drawn items instead of all, with what undoes the bias of the draw.
//!
//! Shapes: scores of the targets (rows,), scores of the drawn items (rows, drawn) -> scalar, the mean over rows.
//! Papers: Bengio and Senécal 2008 (adaptive importance sampling); Yi et al. 2019 (logQ in retrieval); Khrylchenko et al.
//! 2025, Correcting the LogQ Correction, eq. 9: the target is always there, it is not drawn, so it is never corrected,
//! and a drawn item has the probability Q'(n) = Q(n) / (1 - Q(p)) of a draw that is not the target.
//!
//! The corrected loss is stated there as sg(1 - P)(-s_p + log sum_n exp(s_n - log Q'(n))), P the probability of the target
//! among itself and exp(s_n - log Q'(n) - log N). Its gradient is that of -log P, which is what is computed here: it also
//! has the value of full softmax where every other item is drawn.

use crate::data::Negatives;
use crate::nn::{exp, exp_shifted_sum, max_of, sum_of, values, vectorized, with_values};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Score of a drawn item that is the target itself; its exponential is 0 in f32.
const RULED_OUT: f32 = -1e4;

/// What is subtracted from the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogQ {
    /// Nothing: popular items are pushed down as often as they are drawn.
    None,
    /// The log of how often an item is drawn, from drawn items and from the target.
    Classic,
    /// The same from drawn items only.
    #[default]
    Corrected,
}

/// Mean over rows of minus the log-probability of the target among itself and what was drawn.
///
/// # Errors
/// Shapes that do not belong together.
pub fn sampled_softmax(
    positive: &Tensor,
    negative: &Tensor,
    targets: &[u32],
    drawn: &Negatives,
    log_q: LogQ,
) -> Result<Tensor> {
    let (rows, draws) = negative.dims2()?;
    if positive.dims() != [rows] || targets.len() != rows || drawn.items.len() != draws {
        return Err(Error::Mismatch {
            what: "scores of a sampled softmax".into(),
            expected: format!(
                "({},) of targets and ({}, {}) of drawn items",
                targets.len(),
                targets.len(),
                drawn.items.len()
            ),
            found: format!("{:?} and {:?}", positive.dims(), negative.dims()),
        });
    }
    let of_items = |expected: &f32| if log_q == LogQ::None { 0.0 } else { -expected.ln() };
    let op = Shifted {
        targets: targets.to_vec(),
        items: drawn.items.clone(),
        column: drawn.expected.iter().map(of_items).collect(),
        offset: if log_q == LogQ::Corrected { drawn.offsets(targets) } else { vec![0.0; rows] },
        own: match log_q {
            LogQ::Classic => drawn.of_targets.iter().map(|expected| -expected.ln()).collect(),
            LogQ::None | LogQ::Corrected => vec![0.0; rows],
        },
    };
    Ok(positive.contiguous()?.apply_op2(&negative.contiguous()?, op)?)
}

/// Cross-entropy of the first of each row's scores, what undoes the bias added on the way and no row of logits kept:
/// (rows,), (rows, drawn) -> scalar.
struct Shifted {
    targets: Vec<u32>,
    items: Vec<u32>,
    /// Added to the scores of drawn items, by item and by row.
    column: Vec<f32>,
    offset: Vec<f32>,
    /// Added to the target's own.
    own: Vec<f32>,
}

impl Shifted {
    /// The shifted scores of drawn items of a row into `scores`; the target's own, shifted, and the greatest of all.
    #[inline(always)]
    fn row(&self, row: usize, positive: f32, negative: &[f32], scores: &mut [f32]) -> (f32, f32) {
        let (target, offset) = (self.targets[row], self.offset[row]);
        for i in 0..scores.len() {
            let shifted = negative[i] + self.column[i] + offset;
            scores[i] = if self.items[i] == target { RULED_OUT } else { shifted };
        }
        let own = positive + self.own[row];
        (own, max_of(scores).max(own))
    }
}

impl CustomOp2 for Shifted {
    fn name(&self) -> &'static str {
        "sampled-softmax"
    }

    fn cpu_fwd(
        &self,
        p: &CpuStorage,
        pl: &Layout,
        n: &CpuStorage,
        nl: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (positive, negative, draws) = (values(p, pl)?, values(n, nl)?, self.items.len());
        let rows: Vec<f64> = positive
            .par_iter()
            .zip(negative.par_chunks(draws))
            .enumerate()
            .with_min_len(16)
            .map_init(
                || vec![0.0; draws],
                |scores, (row, (positive, negative))| {
                    vectorized!({
                        let (own, max) = self.row(row, *positive, negative, scores);
                        let sum = exp_shifted_sum(scores, max) + exp(own - max);
                        f64::from(max + sum.ln() - own)
                    })
                },
            )
            .collect();
        let mean = rows.iter().sum::<f64>() / rows.len().max(1) as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        positive: &Tensor,
        negative: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, draws) = negative.dims2()?;
        let scale = grad.to_scalar::<f32>()? / rows as f32;
        let (mut dp, mut dn) = (vec![0.0; rows], vec![0.0; rows * draws]);
        with_values(positive, |ps| {
            with_values(negative, |ns| {
                dp.par_iter_mut()
                    .zip(dn.par_chunks_mut(draws))
                    .zip(ps.par_iter().zip(ns.par_chunks(draws)))
                    .enumerate()
                    .with_min_len(16)
                    .for_each(|(row, ((dp, dn), (positive, negative)))| {
                        vectorized!({
                            let (own, max) = self.row(row, *positive, negative, dn);
                            for score in dn.iter_mut() {
                                *score = exp(*score - max);
                            }
                            let own = exp(own - max);
                            let inverse = scale / (sum_of(dn) + own);
                            dn.iter_mut().for_each(|score| *score *= inverse);
                            *dp = own * inverse - scale;
                        });
                    });
            })
        })??;
        let tensor = |data: Vec<f32>, of: &Tensor| Tensor::from_vec(data, of.shape(), of.device());
        Ok((Some(tensor(dp, positive)?), Some(tensor(dn, negative)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::cross_entropy;
    use crate::nn::{check, project};
    use candle_core::Var;

    const ITEMS: usize = 7;

    /// Loss and gradients with respect to states and items, for `drawn`.
    fn sampled(states: &Var, items: &Var, targets: &[u32], drawn: &Negatives, log_q: LogQ) -> (f32, Vec<Vec<f32>>) {
        let rows = |ids: &[u32]| items.index_select(&Tensor::new(ids, items.device()).unwrap(), 0).unwrap();
        let positive = (states.as_tensor() * rows(targets)).unwrap().sum(1).unwrap();
        let negative = project(states, &rows(&drawn.items)).unwrap();
        gradients(&sampled_softmax(&positive, &negative, targets, drawn, log_q).unwrap(), &[states, items])
    }

    fn gradients(loss: &Tensor, of: &[&Var]) -> (f32, Vec<Vec<f32>>) {
        let grads = loss.backward().unwrap();
        let flat = |var: &&Var| grads.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (loss.to_scalar().unwrap(), of.iter().map(flat).collect())
    }

    fn close(a: &(f32, Vec<Vec<f32>>), b: &(f32, Vec<Vec<f32>>)) -> bool {
        let gap = a.1.concat().iter().zip(b.1.concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        (a.0 - b.0).abs() < 1e-5 && gap < 1e-5
    }

    fn inputs() -> (Var, Var, Vec<u32>) {
        (check::var("states", &[3, 4]), check::var("items", &[ITEMS, 4]), vec![2, 6, 2])
    }

    /// Every item once, as a uniform draw would bring them on average.
    fn everything() -> Negatives {
        Negatives { items: (0..ITEMS as u32).collect(), expected: vec![1.0; ITEMS], of_targets: vec![1.0; 3] }
    }

    #[test]
    fn gradients_match_central_differences() {
        let (positive, negative) = (check::var("p", &[3]), check::var("n", &[3, 5]));
        let drawn = Negatives {
            items: vec![0, 5, 2, 3, 3],
            expected: vec![0.4, 1.5, 0.9, 1.1, 1.1],
            of_targets: vec![0.9, 0.3, 0.9],
        };
        for log_q in [LogQ::None, LogQ::Classic, LogQ::Corrected] {
            check::gradients(&[&positive, &negative], || {
                sampled_softmax(&positive, &negative, &[2, 6, 2], &drawn, log_q).unwrap()
            });
        }
    }

    #[test]
    fn with_every_other_item_drawn_it_is_full_softmax() {
        let (states, items, targets) = inputs();
        let full = cross_entropy(&project(&states, &items).unwrap(), targets.clone(), 0.0).unwrap();
        let full = gradients(&full, &[&states, &items]);
        for log_q in [LogQ::None, LogQ::Classic, LogQ::Corrected] {
            assert!(close(&sampled(&states, &items, &targets, &everything(), log_q), &full), "{log_q:?}");
        }
    }

    /// The corrected loss has the gradient that the paper writes with a stopped weight.
    #[test]
    fn the_corrected_gradient_is_that_of_the_paper() {
        let (states, items, targets) = inputs();
        let drawn = Negatives {
            items: vec![0, 5, 2, 3, 3],
            expected: vec![0.4, 1.5, 0.9, 1.1, 1.1],
            of_targets: vec![0.9, 0.3, 0.9],
        };
        let ours = sampled(&states, &items, &targets, &drawn, LogQ::Corrected);
        let draws = drawn.items.len() as f32;
        let mut loss: Option<Tensor> = None;
        for (row, target) in targets.iter().enumerate() {
            let state = states.get(row).unwrap();
            let score = |item: u32| (&state * items.get(item as usize).unwrap()).unwrap().sum_all().unwrap();
            let positive = score(*target);
            let others: Vec<usize> = (0..drawn.items.len()).filter(|n| drawn.items[*n] != *target).collect();
            let q_target = drawn.of_targets[row] / draws;
            let terms: Vec<Tensor> = others
                .iter()
                .map(|n| {
                    let q = f64::from(drawn.expected[*n] / draws / (1.0 - q_target));
                    (score(drawn.items[*n]) - q.ln()).unwrap().exp().unwrap()
                })
                .collect();
            let sum = Tensor::stack(&terms, 0).unwrap().sum_all().unwrap();
            let at = positive.exp().unwrap().to_scalar::<f32>().unwrap();
            let p = at / (at + sum.to_scalar::<f32>().unwrap() / others.len() as f32);
            let term = ((sum.log().unwrap() - positive).unwrap() * f64::from(1.0 - p)).unwrap();
            loss = Some(loss.map_or_else(|| term.clone(), |loss| (loss + &term).unwrap()));
        }
        let (_, theirs) = gradients(&(loss.unwrap() / 3.0).unwrap(), &[&states, &items]);
        assert!(close(&(0.0, ours.1), &(0.0, theirs)));
    }

    /// Over many draws, the corrected gradient of a popular item is nearer to full softmax than the uncorrected one.
    #[test]
    fn correction_brings_the_mean_gradient_to_full_softmax() {
        let (states, items, targets) = inputs();
        let full = cross_entropy(&project(&states, &items).unwrap(), targets.clone(), 0.0).unwrap();
        let full = gradients(&full, &[&states, &items]).1.concat();
        // Item 0 is drawn ten times as often as the others.
        let shares = [2.5f32, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25];
        let gap = |log_q| {
            let mut mean = vec![0f32; full.len()];
            let rounds = 400;
            for round in 0..rounds {
                let mut drawn = Vec::new();
                for at in 0..16u64 {
                    let pick = (rqvae::mix(round * 31 + at) % 16) as u32;
                    drawn.push(if pick < 10 { 0 } else { pick - 9 });
                }
                let expected = |item: &u32| shares[*item as usize] * 4.0;
                let drawn = Negatives {
                    expected: drawn.iter().map(expected).collect(),
                    of_targets: targets.iter().map(expected).collect(),
                    items: drawn,
                };
                let found = sampled(&states, &items, &targets, &drawn, log_q).1.concat();
                mean.iter_mut().zip(found).for_each(|(m, x)| *m += x / rounds as f32);
            }
            mean.iter().zip(&full).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
        };
        let (none, corrected) = (gap(LogQ::None), gap(LogQ::Corrected));
        assert!(corrected < 0.35 * none, "none {none}, corrected {corrected}");
    }

    #[test]
    fn shapes_that_differ_are_refused() {
        let (positive, negative) = (check::var("p", &[3]), check::var("n", &[3, 2]));
        assert!(sampled_softmax(&positive, &negative, &[0, 1, 2], &everything(), LogQ::None).is_err());
    }
}
