//! Rows of length one.

use candle_core::{D, Result, Tensor};

/// Each row of the last axis divided by its length; rows of zeros stay: (.., dim) -> (.., dim).
pub fn unit(x: &Tensor) -> Result<Tensor> {
    let length = (x.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?;
    x.broadcast_div(&length)
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn gradients_match_central_differences() {
        let x = check::var("x", &[4, 5]);
        check::gradients(&[&x], || unit(&x).unwrap());
        let zeros = x.zeros_like().unwrap();
        assert_eq!(unit(&zeros).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }
}
