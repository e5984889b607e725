//! Fits a quantiser to vectors in a `.npy` file (f16 or f32) and prints what the codes look like.
//!
//! Usage: `fit VECTORS.npy METHOD '{"seed":1}'`

use candle_core::{DType, Tensor};
use rqvae::{QuantizerConfig, SidStats, Vectors, fit_quantizer};
use std::io::Write;
use std::time::Instant;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(method)) = (args.next(), args.next()) else {
        return Err("usage: fit VECTORS.npy METHOD ['{\"seed\":1}']".into());
    };
    let tensor = Tensor::read_npy(path)?.to_dtype(DType::F32)?;
    let dim = tensor.dim(1)?;
    let content = Vectors::new(dim, tensor.flatten_all()?.to_vec1()?)?;
    let mut config: QuantizerConfig = serde_json::from_str(&args.next().unwrap_or("{}".into()))?;
    config.method = serde_json::from_value(method.into())?;

    let mut out = std::io::stdout().lock();
    let start = Instant::now();
    let quantizer = fit_quantizer(&config, &content, &mut |p| {
        if p.done % 20 == 0 || p.done == p.total {
            let loss = p.loss.unwrap_or(f64::NAN);
            let _ = writeln!(
                out,
                "{:6.1}s {} {}/{} loss {loss:.4}",
                start.elapsed().as_secs_f64(),
                p.stage,
                p.done,
                p.total
            );
        }
    })?;
    let fitted = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let encoded = quantizer.encode(&content)?;
    let rate = content.rows() as f64 / start.elapsed().as_secs_f64();
    let stats = SidStats::of(&encoded.codes, quantizer.codebook_sizes());
    writeln!(out, "{}", serde_json::to_string(&stats)?)?;
    writeln!(
        out,
        "fit {fitted:.1} s, encode {rate:.0} items/s, relative error {:.4}",
        encoded.relative_error(&content)
    )?;
    Ok(())
}
