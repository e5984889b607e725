//! The program itself: S6 and S7, tokens, signals.

use super::client::{Client, entry};
use super::server::{LAB, copy, eventually};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn command(name: &str, args: &[&str]) -> Command {
    let source = LAB.source(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidrec"));
    command.arg("serve").arg("--run").arg(source.run).arg("--catalogue").arg(source.catalogue);
    command.args(["--addr", "127.0.0.1:0"]).args(args).stderr(Stdio::piped());
    command
}

/// Starts it and reads its address.
pub(crate) fn start(mut command: Command) -> (Child, std::net::SocketAddr) {
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines.by_ref().find_map(|line| {
        let line = line.unwrap();
        line.split_once("http://").map(|(_, rest)| rest.split(' ').next().unwrap().parse().unwrap())
    });
    // Goes on reading, so that the program can go on writing.
    std::thread::spawn(move || lines.for_each(drop));
    (child, address.unwrap())
}

pub(crate) fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn sigterm_under_load_drops_nothing_that_was_accepted() {
    let (mut child, address) = start(command("a", &["--drain-ms", "300"]));
    let key = LAB.catalogue().keys.key(rqvae::ItemIdx(0)).to_string();
    let body = entry(&[&key]);
    let answered: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let body = body.to_string();
                scope.spawn(move || {
                    let mut count = 0;
                    let mut client = Client::new(address);
                    // Until the server closes the connection, which it may do between two requests only.
                    while let Ok(answer) =
                        client.ask("POST", "/v1/recommend", "content-type: application/json\r\n", &body)
                    {
                        assert_eq!(answer.status, 200, "{}", answer.body);
                        count += 1;
                        if answer.header("connection") == Some("close") {
                            break;
                        }
                    }
                    count
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(700));
        let began = Instant::now();
        signal(&child, "-TERM");
        let mut probe = Client::new(address);
        eventually("readiness turns", || probe.get("/readyz").status == 503);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(10));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(answered > 20, "{answered}");
}

#[test]
fn sighup_and_the_pointer_file_bring_the_next_version() {
    let dir = tempfile::tempdir().unwrap();
    let versions = dir.path().join("versions");
    copy(&LAB.source("a").catalogue, &versions.join("v1"));
    std::fs::write(versions.join("current"), "v1\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidrec"));
    command.arg("serve").arg("--run").arg(LAB.source("a").run).arg("--catalogue").arg(&versions);
    command.args(["--addr", "127.0.0.1:0", "--watch"]).stderr(Stdio::piped());
    let (mut child, address) = start(command);
    let info = || Client::new(address).get("/v1/info").json();
    let first = info()["index_version"].clone();
    let change = |from: &str, to: &str, id: &str| {
        let gone = dir.path().join(format!("{to}.csv"));
        std::fs::write(&gone, format!("item_id\n{id}\n")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_sidrec"))
            .args(["sids", "remove"])
            .arg(versions.join(from))
            .arg("--items")
            .arg(&gone)
            .arg("--out")
            .arg(versions.join(to))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::write(versions.join("next"), to).unwrap();
        std::fs::rename(versions.join("next"), versions.join("current")).unwrap();
    };
    let catalogue = LAB.catalogue();
    change("v1", "v2", catalogue.keys.key(rqvae::ItemIdx(0)));
    eventually("the watcher sees the new pointer", || info()["index_version"] != first);
    assert_eq!(info()["items"], 299);
    change("v2", "v3", catalogue.keys.key(rqvae::ItemIdx(1)));
    signal(&child, "-HUP");
    eventually("the next version", || info()["items"] == 298);
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_bad_start_says_why_and_never_serves() {
    let dir = tempfile::tempdir().unwrap();
    let source = LAB.source("a");
    let broken = dir.path().join("broken");
    copy(&source.catalogue, &broken);
    let index = broken.join("index.safetensors");
    let bytes = std::fs::read(&index).unwrap();
    std::fs::write(&index, &bytes[..bytes.len() - 7]).unwrap();
    let missing = dir.path().join("missing");
    let (run, catalogue) = (source.run, source.catalogue);
    let other = LAB.source("b").catalogue;
    let cases = [
        (&run, &broken, "", 65, "index.safetensors"),
        (&run, &other, "", 65, "SID table"),
        (&run, &missing, "", 66, "missing"),
        (&missing, &catalogue, "", 66, "missing"),
        (&run, &catalogue, "0.0.0.0:0", 2, "--allow-unauthenticated"),
    ];
    for (run, catalogue, address, code, word) in cases {
        let began = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidrec"));
        command.arg("serve").arg("--run").arg(run).arg("--catalogue").arg(catalogue);
        command.args(["--addr", if address.is_empty() { "127.0.0.1:0" } else { address }]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(word) && !text.contains("serving on"), "{text}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}
