//! Truncated singular value decomposition of a sparse matrix by randomised subspace iteration.
//!
//! Paper: Halko, Martinsson, Tropp 2011, Finding structure with randomness, alg. 4.4.
//! Deviations: the orthonormal basis comes from the eigenvectors of the Gram matrix, computed twice, not from QR.
//! Every sum runs in a fixed order, so the number of threads does not change a bit.

use crate::SeededRng;
use nalgebra::{DMatrix, DMatrixView, SymmetricEigen};
use rand::Rng;
use rayon::prelude::*;

/// Rows whose Gram matrices are summed as one; fixed, for the order of sums.
const CHUNK: usize = 1024;

/// A sparse matrix by rows: row i holds `entries[starts[i]..starts[i + 1]]`, columns ascending.
pub(crate) struct Sparse {
    pub(super) columns: usize,
    pub(super) starts: Vec<usize>,
    pub(super) entries: Vec<(u32, f32)>,
}

impl Sparse {
    pub(crate) fn new(columns: usize, rows: Vec<Vec<(u32, f32)>>) -> Self {
        let mut starts = Vec::with_capacity(rows.len() + 1);
        let mut entries = Vec::with_capacity(rows.iter().map(Vec::len).sum());
        starts.push(0);
        for row in rows {
            entries.extend(row);
            starts.push(entries.len());
        }
        Self { columns, starts, entries }
    }

    fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    fn row(&self, row: usize) -> &[(u32, f32)] {
        &self.entries[self.starts[row]..self.starts[row + 1]]
    }

    fn transposed(&self) -> Self {
        let mut starts = vec![0; self.columns + 1];
        for (column, _) in &self.entries {
            starts[*column as usize + 1] += 1;
        }
        for at in 0..self.columns {
            starts[at + 1] += starts[at];
        }
        let mut next = starts.clone();
        let mut entries = vec![(0, 0.0); self.entries.len()];
        for row in 0..self.rows() {
            for &(column, value) in self.row(row) {
                let place = &mut next[column as usize];
                entries[*place] = (row as u32, value);
                *place += 1;
            }
        }
        Self { columns: self.rows(), starts, entries }
    }

    /// (rows, columns) x (columns, k) -> (rows, k), dense and row-major.
    fn times(&self, dense: &[f32], k: usize) -> Vec<f32> {
        let mut product = vec![0.0; self.rows() * k];
        product.par_chunks_mut(k).enumerate().for_each(|(row, out)| add_rows(self.row(row), dense, out));
        product
    }
}

/// Adds the rows of `dense` that `sparse` names, weighted, to `out`.
pub(super) fn add_rows(sparse: &[(u32, f32)], dense: &[f32], out: &mut [f32]) {
    let k = out.len();
    for &(at, weight) in sparse {
        let from = at as usize * k;
        for (out, x) in out.iter_mut().zip(&dense[from..from + k]) {
            *out += weight * x;
        }
    }
}

/// Right singular vectors (columns, dim) row-major, and singular values (dim,), descending.
///
/// Missing rank shows as singular values and vectors of zero. The sign of a vector makes its largest entry positive.
pub(crate) fn right_singular_vectors(
    matrix: &Sparse,
    dim: usize,
    oversample: usize,
    iterations: usize,
    rng: SeededRng,
) -> (Vec<f32>, Vec<f32>) {
    let k = (dim + oversample).min(matrix.rows()).min(matrix.columns).max(1);
    let transposed = matrix.transposed();
    let mut signs = rng.stream("lsa");
    let start: Vec<f32> = (0..matrix.columns * k).map(|_| if signs.random() { 1.0 } else { -1.0 }).collect();
    let mut basis = orthonormal(matrix.times(&start, k), k);
    for _ in 0..iterations {
        let right = orthonormal(transposed.times(&basis, k), k);
        basis = orthonormal(matrix.times(&right, k), k);
    }
    let right = transposed.times(&basis, k);
    let (values, vectors) = eigen(&right, k);
    let rotation = DMatrix::from_fn(dim, k, |to, from| {
        if to < k && values[to] > 0.0 { (vectors[(from, to)] / values[to].sqrt()) as f32 } else { 0.0 }
    });
    let mut singular = rotate(&right, k, &rotation);
    fix_signs(&mut singular, dim);
    let values = (0..dim).map(|at| values.get(at).map_or(0.0, |v| v.max(0.0).sqrt() as f32)).collect();
    (singular, values)
}

/// A basis of the columns of a (rows, k) matrix; directions without length become zero.
fn orthonormal(mut dense: Vec<f32>, k: usize) -> Vec<f32> {
    for _ in 0..2 {
        let (values, vectors) = eigen(&dense, k);
        let rotation = DMatrix::from_fn(k, k, |to, from| {
            if values[to] > 0.0 { (vectors[(from, to)] / values[to].sqrt()) as f32 } else { 0.0 }
        });
        dense = rotate(&dense, k, &rotation);
    }
    dense
}

/// Eigenvalues (descending, noise set to zero) and eigenvectors of the (k, k) Gram matrix of a (rows, k) matrix.
fn eigen(dense: &[f32], k: usize) -> (Vec<f64>, DMatrix<f64>) {
    let parts: Vec<DMatrix<f64>> = dense
        .par_chunks(CHUNK * k)
        .map(|chunk| {
            // A row-major chunk read by columns is its transpose.
            let chunk = DMatrixView::from_slice(chunk, k, chunk.len() / k).map(f64::from);
            &chunk * chunk.transpose()
        })
        .collect();
    let mut gram = DMatrix::<f64>::zeros(k, k);
    for part in parts {
        gram += part;
    }
    let found = SymmetricEigen::new(gram);
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&a, &b| found.eigenvalues[b].total_cmp(&found.eigenvalues[a]).then(a.cmp(&b)));
    let floor = order.first().map_or(0.0, |&at| found.eigenvalues[at]) * 1e-12;
    let values = order.iter().map(|&at| Some(found.eigenvalues[at]).filter(|&v| v > floor).unwrap_or(0.0)).collect();
    let vectors = DMatrix::from_fn(k, k, |row, at| found.eigenvectors[(row, order[at])]);
    (values, vectors)
}

/// (rows, k) row-major x transpose of (to, k) -> (rows, to) row-major.
fn rotate(dense: &[f32], k: usize, rotation: &DMatrix<f32>) -> Vec<f32> {
    let to = rotation.nrows();
    let mut out = vec![0.0; dense.len() / k * to];
    out.par_chunks_mut(CHUNK * to).zip(dense.par_chunks(CHUNK * k)).for_each(|(out, chunk)| {
        let chunk = DMatrixView::from_slice(chunk, k, chunk.len() / k);
        out.copy_from_slice((rotation * chunk).as_slice());
    });
    out
}

fn fix_signs(dense: &mut [f32], k: usize) {
    let mut largest = vec![0.0_f32; k];
    for row in dense.chunks_exact(k) {
        for (largest, &x) in largest.iter_mut().zip(row) {
            if x.abs() > largest.abs() {
                *largest = x;
            }
        }
    }
    for row in dense.chunks_exact_mut(k) {
        for (x, largest) in row.iter_mut().zip(&largest) {
            *x *= largest.signum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(dense: &DMatrix<f64>) -> Sparse {
        let row = |r: usize| -> Vec<(u32, f32)> {
            let cells = (0..dense.ncols()).map(|c| (c as u32, dense[(r, c)] as f32));
            cells.filter(|(_, x)| *x != 0.0).collect()
        };
        Sparse::new(dense.ncols(), (0..dense.nrows()).map(row).collect())
    }

    #[test]
    fn agrees_with_a_dense_decomposition() {
        // Columns of falling weight, a third of the cells empty.
        let dense = DMatrix::from_fn(40, 25, |r, c| {
            if (r * 7 + c * 3) % 3 == 0 {
                0.0
            } else {
                ((r * 31 + c * 17) % 23) as f64 / f64::from(1 + c as u32).powi(2)
            }
        });
        let exact = dense.clone().svd(false, true);
        let exact_right = exact.v_t.unwrap();
        let (right, values) = right_singular_vectors(&sparse(&dense), 4, 8, 4, SeededRng::new(1));
        for at in 0..4 {
            let expected = exact.singular_values[at];
            assert!((f64::from(values[at]) / expected - 1.0).abs() < 1e-5);
            let dot: f64 = (0..25).map(|c| f64::from(right[c * 4 + at]) * exact_right[(at, c)]).sum();
            assert!((dot.abs() - 1.0).abs() < 1e-4, "{at}: {dot}");
        }
    }

    #[test]
    fn missing_rank_is_zero() {
        let dense = DMatrix::from_fn(6, 5, |r, c| ((r + 1) * (c + 1)) as f64);
        let (right, values) = right_singular_vectors(&sparse(&dense), 3, 8, 2, SeededRng::new(1));
        assert!(values[0] > 1.0);
        assert!(values[1] < 1e-3 * values[0] && values[2] < 1e-3 * values[0]);
        assert_eq!(right.len(), 15);
        assert!(right.iter().all(|x| x.is_finite()));
        assert!(right[4 * 3] > 0.0);
    }

    #[test]
    fn transposing_twice_gives_the_matrix_back() {
        let dense = DMatrix::from_fn(4, 3, |r, c| f64::from(((r * 3 + c) % 4) as u32));
        let matrix = sparse(&dense);
        let again = matrix.transposed().transposed();
        assert_eq!(again.starts, matrix.starts);
        assert_eq!(again.entries, matrix.entries);
    }
}
