//! One staircase, no branches: a crate knows the floors below and never those above.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]

use std::process::Command;

const FLOORS: [(&str, &[&str]); 5] = [
    ("rqvae", &[]),
    ("beam", &["rqvae"]),
    ("seqmodel", &["beam", "rqvae"]),
    ("tools", &["beam", "rqvae", "seqmodel"]),
    ("tests", &["beam", "rqvae", "seqmodel", "tools"]),
];

#[test]
fn crates_depend_downwards_only() {
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(tests::root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert_eq!(packages.len(), FLOORS.len());
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let (_, allowed) = FLOORS.iter().find(|(floor, _)| *floor == name).unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            let ours = FLOORS.iter().any(|(floor, _)| *floor == on);
            assert!(!ours || allowed.contains(&on), "{name} must not know {on}");
        }
    }
}

#[test]
fn no_file_collects_everything() {
    for (floor, _) in &FLOORS[..4] {
        let mut folders = vec![tests::root().join(floor).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                assert!(!["utils", "common", "helpers", "types", "misc"].contains(&name.as_str()), "{name}");
                let lines = std::fs::read_to_string(&path).unwrap().lines().count();
                assert!(
                    lines <= 600 || path.extension().is_none_or(|e| e != "rs"),
                    "{}: {lines} lines",
                    path.display()
                );
            }
        }
    }
}
