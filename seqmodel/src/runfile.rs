//! TREC run and qrels files, as `trec_eval` and ranx read them.

use crate::data::Case;
use crate::retrieve::Scored;
use std::io::{Result, Write};

/// `user Q0 item rank score tag`, one line per recommended item.
///
/// Scores fall strictly with the rank, so that a reader that sorts by score keeps the order.
pub fn write_run(
    out: &mut impl Write,
    tag: &str,
    cases: &[Case],
    lists: &[Vec<Scored>],
    user: &dyn Fn(usize) -> String,
    item: &dyn Fn(rqvae::ItemIdx) -> String,
) -> Result<()> {
    for (case, list) in cases.iter().zip(lists) {
        for (at, scored) in list.iter().enumerate() {
            writeln!(out, "{} Q0 {} {} {} {tag}", user(case.user), item(scored.item), at + 1, list.len() - at)?;
        }
    }
    Ok(())
}

/// `user 0 item 1`, one line per user.
pub fn write_qrels(
    out: &mut impl Write,
    cases: &[Case],
    user: &dyn Fn(usize) -> String,
    item: &dyn Fn(rqvae::ItemIdx) -> String,
) -> Result<()> {
    for case in cases {
        writeln!(out, "{} 0 {} 1", user(case.user), item(case.target))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rqvae::ItemIdx;

    #[test]
    fn lines_are_those_of_trec() {
        let cases = [Case { user: 3, hash: None, history: &[], target: ItemIdx(7) }];
        let lists = vec![vec![Scored { item: ItemIdx(2), score: -0.5 }, Scored { item: ItemIdx(7), score: -0.5 }]];
        let (user, item) = (|u: usize| format!("u{u}"), |i: ItemIdx| format!("i{}", i.0));
        let (mut run, mut qrels) = (Vec::new(), Vec::new());
        write_run(&mut run, "x", &cases, &lists, &user, &item).unwrap();
        write_qrels(&mut qrels, &cases, &user, &item).unwrap();
        assert_eq!(String::from_utf8(run).unwrap(), "u3 Q0 i2 1 2 x\nu3 Q0 i7 2 1 x\n");
        assert_eq!(String::from_utf8(qrels).unwrap(), "u3 0 i7 1\n");
    }
}
