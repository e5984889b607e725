//! Quantisers whose arithmetic is done elsewhere, which here is the host again: the same files and the same codes.

use super::accelerator::{Accelerator, DevicePoints};
use crate::cluster::Points;
use crate::quantize::{Behavior, Method, QuantizerConfig};
use crate::{Code, Error, HierarchicalKmeansConfig, ResidualKmeansConfig, Result, RqVaeConfig, SidEncoder};
use crate::{TowerStart, Towers, Vectors, fit_quantizer_with, mix};

const DIM: usize = 12;
const ITEMS: usize = 700;

/// Points of the host behind the door for others; with `wrong` its answers are shifted by so many codes, and its products
/// are larger by so much.
pub(crate) struct HostPoints {
    points: Vec<f32>,
    dim: usize,
    chosen: Vec<f32>,
    wrong: Code,
}

impl HostPoints {
    pub(crate) fn new(points: &[f32], dim: usize, wrong: Code) -> Self {
        Self { points: points.to_vec(), dim, chosen: Vec::new(), wrong }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl DevicePoints for HostPoints {
    fn dots(&mut self, columns: &[f32], out: &mut [f32]) -> Result<()> {
        let rows = self.points.chunks(self.dim).flat_map(|x| columns.chunks(self.dim).map(move |c| dot(x, c)));
        out.iter_mut().zip(rows).for_each(|(out, dot)| *out = dot + f32::from(self.wrong));
        Ok(())
    }

    fn nearest(&mut self, codewords: &[f32], norms: &[f32], codes: &mut [Code]) -> Result<()> {
        self.chosen.clear();
        for (x, code) in self.points.chunks(self.dim).zip(codes) {
            let scores = codewords.chunks(self.dim).zip(norms).map(|(c, norm)| 0.5 * norm - dot(x, c));
            let best = scores.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(at, _)| at);
            *code = best as Code + self.wrong;
            self.chosen.extend_from_slice(&codewords[best * self.dim..][..self.dim]);
        }
        Ok(())
    }

    fn subtract(&mut self) -> Result<()> {
        self.points.iter_mut().zip(&self.chosen).for_each(|(x, c)| *x -= c);
        Ok(())
    }

    fn unit(&mut self) -> Result<()> {
        self.points.chunks_mut(self.dim).for_each(crate::quantize::unit);
        Ok(())
    }

    fn read(&mut self, points: &mut [f32]) -> Result<()> {
        points.copy_from_slice(&self.points);
        Ok(())
    }
}

/// A device without towers, whose searches pay from so many multiplications on.
struct Searches {
    wrong: Code,
    pays: usize,
}

impl Accelerator for Searches {
    fn towers(&self, _: &TowerStart) -> Result<Box<dyn Towers>> {
        Err(Error::Device { reason: "no towers here".into() })
    }

    fn pays(&self, multiplications: usize) -> bool {
        multiplications >= self.pays
    }

    fn points(&self, points: &[f32], dim: usize) -> Result<Box<dyn DevicePoints>> {
        Ok(Box::new(HostPoints::new(points, dim, self.wrong)))
    }
}

fn content() -> Vectors {
    let unit = |key: u64| (mix(key) % 2000) as f32 / 1000.0 - 1.0;
    let of = |i: u64| unit(mix(i / DIM as u64) % 23 * 1000 + i % DIM as u64) + 0.3 * unit(900_000 + i);
    Vectors::new(DIM, (0..(ITEMS * DIM) as u64).map(of).collect()).unwrap()
}

fn configs() -> Vec<QuantizerConfig> {
    let of = |method| QuantizerConfig { method, levels: 3, codebook_size: 16, seed: 3, ..QuantizerConfig::default() };
    let hkmeans = HierarchicalKmeansConfig { leaf_size: 4, ..HierarchicalKmeansConfig::default() };
    let normalize = ResidualKmeansConfig { normalize: true, ..ResidualKmeansConfig::default() };
    vec![
        of(Method::ResidualKmeans),
        QuantizerConfig { rkmeans: normalize, ..of(Method::ResidualKmeans) },
        of(Method::Balanced),
        QuantizerConfig { hkmeans, ..of(Method::HierarchicalKmeans) },
        of(Method::Opq),
        of(Method::Lsh),
        of(Method::Random),
    ]
}

fn fit(config: &QuantizerConfig, device: Option<&dyn Accelerator>) -> Result<Box<dyn SidEncoder>> {
    fit_quantizer_with(config, &content(), &Behavior::default(), device, &mut |_| ())
}

#[test]
fn searches_elsewhere_end_in_nearly_the_same_quantizer() {
    for config in configs() {
        for pays in [0, 100_000] {
            let device = Searches { wrong: 0, pays };
            let (here, there) = (fit(&config, None).unwrap(), fit(&config, Some(&device)).unwrap());
            let (here, there) = (here.encode(&content()).unwrap(), there.encode(&content()).unwrap());
            // Sums in another order may move a point that lies between two codewords, and k-means goes on from there.
            let (a, b) = (here.relative_error(&content()), there.relative_error(&content()));
            assert!((a - b).abs() < 0.02 * a, "{:?}: {a} {b}", config.method);
        }
    }
}

#[test]
fn what_was_fitted_encodes_the_same_elsewhere() {
    for config in configs() {
        let fitted = fit(&config, None).unwrap();
        let here = fitted.encode(&content()).unwrap();
        for pays in [0, 20_000, usize::MAX] {
            let there = fitted.encode_on(&content(), Some(&Searches { wrong: 0, pays })).unwrap();
            assert_eq!(here.codes, there.codes, "{:?}", config.method);
            for (a, b) in here.reconstruction.data.iter().zip(&there.reconstruction.data) {
                assert!((a - b).abs() < 1e-5, "{:?}", config.method);
            }
        }
        let nothing = Vectors::new(DIM, vec![]).unwrap();
        assert_eq!(fitted.encode_on(&nothing, Some(&Searches { wrong: 0, pays: 0 })).unwrap().codes.rows(), 0);
    }
}

#[test]
fn wrong_answers_are_refused() {
    let configs = configs();
    for config in configs.iter().filter(|config| config.method != Method::Random) {
        let refused = |device: &Searches| fit(config, Some(device)).err().unwrap();
        let shifted = refused(&Searches { wrong: 1, pays: 0 });
        let named = matches!(shifted, Error::Disagreement { .. } | Error::ShapeMismatch { .. });
        assert!(named, "{:?}: {shifted}", config.method);
        let fitted = fit(config, None).unwrap();
        assert!(fitted.encode_on(&content(), Some(&Searches { wrong: 1, pays: 0 })).is_err());
    }
    // A code that there is not, where nothing was multiplied before.
    let mut points = Points::on(Some(&Searches { wrong: 9999, pays: 0 }), &[0.0; 4], 2).unwrap();
    assert!(points.nearest(&[1.0; 6]).unwrap_err().to_string().contains("found by the device"));
    let rqvae = RqVaeConfig { epochs: 2, min_steps: 1, ..RqVaeConfig::default() };
    let config = QuantizerConfig { rqvae, codebook_size: 16, ..QuantizerConfig::default() };
    let refused = fit(&config, Some(&Searches { wrong: 0, pays: 0 })).err().unwrap();
    assert!(matches!(refused, Error::Device { .. }), "{refused}");
}
