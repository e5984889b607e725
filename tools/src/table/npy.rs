//! The `.npy` files of `NumPy`, with vectors of floating-point numbers.
//!
//! Format: numpy.lib.format, versions 1 to 3; little-endian, C order, two dimensions.

const MAGIC: &[u8] = b"\x93NUMPY";

/// Rows, columns and numbers of a file.
pub(super) fn parse(bytes: &[u8]) -> Result<(usize, usize, Vec<f32>), String> {
    let version = match bytes.strip_prefix(MAGIC) {
        Some([major, _, rest @ ..]) => (*major, rest),
        _ => return Err("not a NumPy file, or a truncated one".to_owned()),
    };
    let (length, rest) = match version {
        (1, [a, b, rest @ ..]) => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        (2 | 3, [a, b, c, d, rest @ ..]) => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        (1..=3, _) => return Err("truncated header".to_owned()),
        (other, _) => return Err(format!("format version {other}, expected 1 to 3")),
    };
    let (header, data) = rest.split_at_checked(length).ok_or("the header is longer than the file")?;
    let header = std::str::from_utf8(header).map_err(|_| "the header is not UTF-8")?;
    let kind = field(header, "descr").map(|text| text.trim_matches(['\'', '"']));
    let width = match kind {
        Some("<f2") => 2,
        Some("<f4") => 4,
        Some("<f8") => 8,
        other => {
            return Err(format!(
                "numbers of type `{}`; expected little-endian f2, f4 or f8",
                other.unwrap_or_default()
            ));
        }
    };
    if field(header, "fortran_order") != Some("False") {
        return Err("is in Fortran order; save numpy.ascontiguousarray(vectors) instead".to_owned());
    }
    let (rows, dim) = shape(header)?;
    let expected = rows.checked_mul(dim).and_then(|n| n.checked_mul(width)).ok_or("absurd shape")?;
    if data.len() != expected {
        return Err(format!(
            "{} bytes of numbers, shape ({rows}, {dim}) needs {expected}; is the file truncated?",
            data.len()
        ));
    }
    let numbers = match width {
        2 => halves(data),
        4 => singles(data),
        _ => doubles(data),
    };
    Ok((rows, dim, numbers))
}

/// The file of a (rows, dim) matrix.
pub(super) fn to_bytes(rows: usize, dim: usize, numbers: &[f32]) -> Vec<u8> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    // Magic, version, length and header end on a multiple of 64, the last byte being a line feed.
    let padded = (MAGIC.len() + 4 + header.len() + 1).next_multiple_of(64) - MAGIC.len() - 4;
    header.push_str(&" ".repeat(padded - 1 - header.len()));
    header.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
    bytes
}

/// The value after `'name':` in the header's dictionary, up to the next comma.
fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let at = [format!("'{name}':"), format!("\"{name}\":")]
        .iter()
        .find_map(|key| header.find(key.as_str()).map(|at| at + key.len()))?;
    let value = header[at..].split([',', '}']).next()?;
    Some(value.trim())
}

fn shape(header: &str) -> Result<(usize, usize), String> {
    let wrong = || "the header has no shape (items, dim)".to_owned();
    let at = header.find("shape").ok_or_else(wrong)?;
    let inner = header[at..]
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(inner, _)| inner)
        .ok_or_else(wrong)?;
    let sizes: Vec<usize> = inner
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().map_err(|_| wrong()))
        .collect::<Result<_, _>>()?;
    match sizes.as_slice() {
        [rows, dim] => Ok((*rows, *dim)),
        other => Err(format!("has {} dimensions, expected 2: (items, dim)", other.len())),
    }
}

/// Little-endian 32-bit floats.
pub(super) fn singles(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.as_chunks().0.iter();
    chunks.map(|b| f32::from_le_bytes(*b)).collect()
}

/// Little-endian 64-bit floats, to the nearest of 32 bits.
pub(super) fn doubles(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.as_chunks().0.iter();
    chunks.map(|b| f64::from_le_bytes(*b) as f32).collect()
}

/// Little-endian bfloat16 numbers.
pub(super) fn brain_halves(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.as_chunks().0.iter();
    chunks.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)).collect()
}

/// Little-endian IEEE 16-bit floats.
pub(super) fn halves(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.as_chunks().0.iter();
    chunks.map(|b| half(u16::from_le_bytes(*b))).collect()
}

fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from((bits >> 10) & 31);
    let fraction = f32::from(bits & 1023);
    sign * match exponent {
        0 => fraction * 2_f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2_f32.powi(exponent - 25),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn half_precision_is_exact() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333_251_95),
            (0x7bff, 65_504.0),
            (0x0001, 5.960_464_5e-8),
            (0x0400, 6.103_515_6e-5),
            (0x0000, 0.0),
        ] {
            assert_eq!(half(bits).to_bits(), f32::to_bits(value), "{bits:x}");
        }
        assert!(half(0x7c00).is_infinite() && half(0x7e00).is_nan());
        assert_eq!(brain_halves(&[0x80, 0x3f]), [1.0]);
    }

    #[test]
    fn three_widths_are_read() {
        let doubles: Vec<u8> = [1.5_f64, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let read = parse(&file("<f8", "False", "(1, 2)", &doubles)).unwrap();
        assert_eq!(read, (1, 2, vec![1.5, -2.0]));
        let read = parse(&file("<f2", "False", "(2, 1)", &[0, 0x3c, 0, 0xc0])).unwrap();
        assert_eq!(read, (2, 1, vec![1.0, -2.0]));
        let written = to_bytes(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!((written.len() - 24) % 64, 0);
        assert_eq!(parse(&written).unwrap().2, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn broken_files_are_refused() {
        let one = 1.0_f32.to_le_bytes();
        for (bytes, reason) in [
            (file(">f4", "False", "(1, 1)", &one), ">f4"),
            (file("<i4", "False", "(1, 1)", &one), "<i4"),
            (file("<f4", "True", "(1, 1)", &one), "Fortran"),
            (file("<f4", "False", "(1,)", &one), "1 dimensions"),
            (file("<f4", "False", "(1, 2)", &one), "truncated"),
            (file("<f4", "False", "(99999999999, 99999999999)", &one), "absurd"),
            (file("<f4", "False", "(-1, 1)", &one), "shape"),
            (b"PK\x03\x04".to_vec(), "not a NumPy"),
            (b"\x93NUMPY\x09\x00ab".to_vec(), "version 9"),
        ] {
            let error = parse(&bytes).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let whole = to_bytes(1, 1, &[1.0]);
        for cut in 0..whole.len() {
            assert!(parse(&whole[..cut]).is_err());
        }
    }
}
