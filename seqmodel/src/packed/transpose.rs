//! Rows to columns, eight by eight.

use super::matrix::Line;

/// Writes `row(0)` to `row(count - 1)` as columns of a panel (inputs, `PANEL`) from its first column on; all have as many
/// numbers as the panel has lines.
pub(super) fn columns<'r>(panel: &mut [Line], count: usize, row: impl Fn(usize) -> &'r [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions.
        #[expect(unsafe_code, reason = "code for some processors alone")]
        unsafe {
            return x86::columns(panel, count, row);
        }
    }
    one_by_one(panel, 0..count, row);
}

/// As [`columns`], some of them.
#[inline(always)]
fn one_by_one<'r>(panel: &mut [Line], columns: std::ops::Range<usize>, row: impl Fn(usize) -> &'r [f32]) {
    for column in columns {
        panel.iter_mut().zip(row(column)).for_each(|(line, number)| line[column] = *number);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Line, one_by_one};
    use core::arch::x86_64::{
        __m256, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    #[target_feature(enable = "avx2")]
    pub(super) fn columns<'r>(panel: &mut [Line], count: usize, row: impl Fn(usize) -> &'r [f32]) {
        let whole = count - count % 8;
        for first in (0..whole).step_by(8) {
            let rows: [&[f32]; 8] = std::array::from_fn(|r| &row(first + r)[..panel.len()]);
            let (blocks, rest) = panel.as_chunks_mut::<8>();
            let done = 8 * blocks.len();
            for (at, block) in blocks.iter_mut().enumerate() {
                let of = |r: usize| rows[r][8 * at..].first_chunk().map_or([0.0; 8], |numbers: &[f32; 8]| *numbers);
                let turned = turn(std::array::from_fn(of));
                for (line, numbers) in block.iter_mut().zip(turned) {
                    line[first..][..8].copy_from_slice(&numbers);
                }
            }
            for (line, input) in rest.iter_mut().zip(done..) {
                line[first..][..8].iter_mut().zip(rows).for_each(|(place, row)| *place = row[input]);
            }
        }
        one_by_one(panel, whole..count, row);
    }

    /// The transpose.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn turn(rows: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
        let [a, b, c, d, e, f, g, h]: [__m256; 8] = bytemuck::must_cast(rows);
        // Twos of rows, then fours, each half by itself; then the halves.
        let pairs = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let fours = |a, b| (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
        let four = |a, b, c, d| {
            let ((ab, ab_high), (cd, cd_high)) = (pairs(a, b), pairs(c, d));
            let ((first, second), (third, fourth)) = (fours(ab, cd), fours(ab_high, cd_high));
            [first, second, third, fourth]
        };
        let (upper, lower) = (four(a, b, c, d), four(e, f, g, h));
        let left: [__m256; 4] = std::array::from_fn(|i| _mm256_permute2f128_ps::<0x20>(upper[i], lower[i]));
        let right: [__m256; 4] = std::array::from_fn(|i| _mm256_permute2f128_ps::<0x31>(upper[i], lower[i]));
        bytemuck::must_cast([left, right])
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::PANEL;
    use super::*;

    #[test]
    fn columns_are_the_rows() {
        for count in 0..=PANEL {
            for inputs in 0..40 {
                let rows: Vec<Vec<f32>> =
                    (0..count).map(|r| (0..inputs).map(|i| (100 * r + i) as f32).collect()).collect();
                let mut panel = vec![[-1.0; PANEL]; inputs];
                columns(&mut panel, count, |r| &rows[r]);
                for (input, line) in panel.iter().enumerate() {
                    for (column, number) in line.iter().enumerate() {
                        let expected = if column < count { (100 * column + input) as f32 } else { -1.0 };
                        assert_eq!(*number, expected, "{count} rows of {inputs}: {column} of line {input}");
                    }
                }
            }
        }
    }
}
