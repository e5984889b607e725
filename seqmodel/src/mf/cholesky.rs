//! Symmetric positive definite systems in f64, small enough for plain loops.

/// The lower factor of a matrix, row-major, or `None` where it is not positive definite.
pub(super) struct Cholesky {
    lower: Vec<f64>,
    n: usize,
}

impl Cholesky {
    /// Factors `matrix` (n, n), of which the lower triangle is read.
    pub(super) fn new(mut matrix: Vec<f64>, n: usize) -> Option<Self> {
        for i in 0..n {
            let (done, rest) = matrix.split_at_mut(i * n);
            let row = &mut rest[..n];
            for j in 0..i {
                let other = &done[j * n..][..=j];
                let sum: f64 = row[..j].iter().zip(other).map(|(a, b)| a * b).sum();
                row[j] = (row[j] - sum) / other[j];
            }
            let left = row[i] - row[..i].iter().map(|x| x * x).sum::<f64>();
            if left <= 0.0 || !left.is_finite() {
                return None;
            }
            row[i] = left.sqrt();
        }
        Some(Self { lower: matrix, n })
    }

    /// Solves for one right side, in place.
    pub(super) fn solve(&self, x: &mut [f64]) {
        let n = self.n;
        for i in 0..n {
            let row = &self.lower[i * n..][..n];
            let sum: f64 = row[..i].iter().zip(x.iter()).map(|(a, b)| a * b).sum();
            x[i] = (x[i] - sum) / row[i];
        }
        for i in (0..n).rev() {
            x[i] /= self.lower[i * n + i];
            let at = x[i];
            let row = &self.lower[i * n..][..i];
            x[..i].iter_mut().zip(row).for_each(|(x, l)| *x -= l * at);
        }
    }

    /// The inverse, row-major: (n, n).
    pub(super) fn inverse(&self) -> Vec<f64> {
        use rayon::prelude::*;
        let mut inverse = vec![0.0; self.n * self.n];
        inverse.par_chunks_mut(self.n).enumerate().for_each(|(i, row)| {
            row[i] = 1.0;
            self.solve(row);
        });
        inverse
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn solves_what_it_factors(n in 1usize..12, seed: u64) {
            let draw = |i: usize| (rqvae::mix(seed ^ i as u64) % 2000) as f64 / 1000.0 - 1.0;
            let half: Vec<f64> = (0..n * n).map(draw).collect();
            let dot = |i: usize, j: usize| (0..n).map(|k| half[i * n + k] * half[j * n + k]).sum::<f64>();
            let matrix: Vec<f64> =
                (0..n * n).map(|at| dot(at / n, at % n) + if at / n == at % n { 0.5 } else { 0.0 }).collect();
            let factored = Cholesky::new(matrix.clone(), n).unwrap();
            let want: Vec<f64> = (0..n).map(|i| draw(1000 + i)).collect();
            let mut x: Vec<f64> = (0..n).map(|i| (0..n).map(|j| matrix[i * n + j] * want[j]).sum()).collect();
            factored.solve(&mut x);
            prop_assert!(x.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-8), "{:?} {:?}", x, want);
            let inverse = factored.inverse();
            let one: f64 = (0..n).map(|j| matrix[j] * inverse[j * n]).sum();
            prop_assert!((one - 1.0).abs() < 1e-8);
        }
    }

    #[test]
    fn what_is_not_positive_is_refused() {
        assert!(Cholesky::new(vec![1.0, 0.0, 2.0, 1.0], 2).is_none());
        assert!(Cholesky::new(vec![f64::NAN], 1).is_none());
    }
}
