//! HTTP as the document says, and limits that are named.

use super::client::{Client, entry, ids};
use super::server::{LAB, Running, Stub};
use serde_json::{Value, json};
use std::io::Read;
use tools::serve::limits::Limits;
use tools::serve::version::Version;
use tools::serve::{Tokens, check_address, document};

#[test]
fn recommends_known_items_and_says_what_it_did_not_know() {
    let server = Running::model(&LAB.source("a"));
    let catalogue = LAB.catalogue();
    let key = |row: u32| catalogue.keys.key(rqvae::ItemIdx(row)).to_string();
    let mut client = server.client();
    let body = json!({"requests": [
        {"id": "u", "user_id": 7, "history": [key(3), "nowhere", key(5)], "k": 7, "deny": [key(9)], "trace": true},
        {"id": 8, "history": ["nowhere"], "k": 4},
        {"id": "bad", "history": [], "k": 0},
        {"id": "worse", "histori": []},
        {"history": [key(1)], "allow": [key(1), key(2), key(4)], "exclude_seen": false},
    ], "timeout_ms": 20_000});
    let answer = client.post("/v1/recommend", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let value = answer.json();
    let results = value["results"].as_array().unwrap();
    let status: Vec<_> = results.iter().map(|result| result["status"].as_str().unwrap()).collect();
    assert_eq!(status, ["ok", "fallback", "invalid", "invalid", "ok"]);
    let items = ids(&value);
    assert_eq!(items.len(), 7);
    assert!([3, 5, 9].iter().all(|row| !items.contains(&key(*row))));
    assert_eq!(
        (&results[0]["unknown_items"], &results[0]["used_history"], &results[0]["id"]),
        (&json!(1), &json!(2), &json!("u"))
    );
    let item = catalogue.keys.find(&items[0]).unwrap();
    assert_eq!(results[0]["items"][0]["sid"], json!(catalogue.sids.codes(item)));
    assert_eq!(results[0]["levels"].as_array().unwrap().len(), catalogue.sids.spec().len() - 1);
    assert_eq!((results[1]["items"].as_array().unwrap().len(), &results[1]["id"]), (4, &json!(8)));
    assert!(results[2]["error"]["message"].as_str().unwrap().contains("k: expected 1 to 1000, found 0"));
    assert!(results[3]["error"]["message"].as_str().unwrap().contains("histori"));
    assert_eq!(results[4]["items"].as_array().unwrap().len(), 3);

    let info = client.get("/v1/info").json();
    assert_eq!((&info["items"], &info["index_version"]), (&json!(300), &value["index_version"]));
    assert_eq!(client.get(&format!("/v1/items/{}", key(3))).json()["item_id"], json!(key(3)));
    assert_eq!(client.get("/v1/items/nowhere").status, 404);
    let root = client.get("/v1/sids/root").json();
    assert_eq!(root["count"], json!(300));
    let code = root["children"][0]["code"].to_string();
    assert_eq!(client.get(&format!("/v1/sids/{code}")).json()["count"], root["children"][0]["count"]);
    assert_eq!((client.get("/v1/sids/1,2,3,4,5").status, client.get("/v1/sids/x").status), (422, 422));
    let found = client.get("/v1/items?limit=3").json();
    assert_eq!(found["items"].as_array().unwrap().len(), 3);
    assert_eq!(client.get("/v1/items?limit=x").status, 400);

    let infer = json!({"id": "r", "parameters": {"k": 3}, "inputs": [{"name": "histories", "datatype": "BYTES", "shape": [2, 2],
        "data": [key(3), key(5), key(1), ""]}]});
    let answer = client.post("/v2/models/rqt/infer", &infer);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["outputs"][0]["shape"], json!([2, 3]));
    assert_eq!(client.post("/v2/models/other/infer", &infer).status, 404);
    let wrong = json!({"inputs": [{"name": "histories", "datatype": "BYTES", "shape": [3, 2], "data": ["a"]}]});
    assert_eq!(client.post("/v2/models/rqt/infer", &wrong).status, 422);
    assert_eq!(server.stop(), tools::serve::Ended::Stopped);
}

#[test]
fn every_limit_has_its_status() {
    let limits = Limits { max_body: 4000, max_entries: 8, max_work: 200, max_history: 50, ..Limits::default() };
    let server = Running::stub(Stub::default(), &limits);
    let mut client = server.client();
    let json_type = "content-type: application/json\r\n";
    let mut status = |method: &str, path: &str, headers: &str, body: &str| {
        let answer = client.ask(method, path, headers, body).unwrap();
        if answer.status >= 400 && method != "HEAD" {
            let error = &answer.json()["error"];
            assert!(error["code"].is_string() && error["message"].is_string(), "{}", answer.body);
            assert_eq!(error["request_id"], json!(answer.header("x-request-id").unwrap()));
        }
        answer.status
    };
    let many = |count: usize, beam: usize| {
        json!({"requests": vec![json!({"history": ["P0"], "beam_width": beam, "k": 1}); count]}).to_string()
    };
    let long = json!({"requests": [{"history": vec!["x"; 51]}]}).to_string();
    let deep = format!("{{\"requests\":{}{}}}", "[".repeat(40), "]".repeat(40));
    let cases: [(&str, &str, &str, String, u16); 22] = [
        ("POST", "/v1/recommend", json_type, many(2, 5), 200),
        ("POST", "/v1/recommend", "", many(1, 5), 415),
        ("POST", "/v1/recommend", "content-type: text/plain\r\n", many(1, 5), 415),
        ("POST", "/v1/recommend", json_type, "{".into(), 400),
        ("POST", "/v1/recommend", json_type, deep, 400),
        ("POST", "/v1/recommend", json_type, "{\"requests\":[],\"x\":1}".into(), 400),
        ("POST", "/v1/recommend", json_type, many(0, 5), 422),
        ("POST", "/v1/recommend", json_type, many(1, 1025), 422),
        ("POST", "/v1/recommend", json_type, many(8, 50), 422),
        ("POST", "/v1/recommend", json_type, many(9, 1), 413),
        ("POST", "/v1/recommend", json_type, "{\"requests\":[{\"history\":[\"P0\"]}],\"timeout_ms\":0}".into(), 422),
        ("POST", "/v1/recommend", json_type, long, 422),
        ("GET", "/v1/recommend", "", String::new(), 405),
        ("OPTIONS", "/v1/recommend", "", String::new(), 405),
        ("DELETE", "/v1/info", "", String::new(), 405),
        ("GET", "/nowhere", "", String::new(), 404),
        ("HEAD", "/v1/info", "", String::new(), 200),
        ("GET", "/", "", String::new(), 200),
        ("GET", "/docs", "", String::new(), 200),
        ("GET", "/metrics", "", String::new(), 200),
        ("POST", "/v1/admin/reload", json_type, String::new(), 409),
        ("POST", "/v1/admin/items", json_type, "{\"items\":[{\"title\":\"no id\"}]}".into(), 422),
    ];
    for (method, path, headers, body, expected) in cases {
        if method == "HEAD" {
            continue;
        }
        assert_eq!(status(method, path, headers, &body), expected, "{method} {path} {body}");
    }
    // Over the limit by its own word: refused before it is read.
    let mut client = server.client();
    client
        .send(
            b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 4001\r\n\r\n",
        )
        .unwrap();
    assert_eq!(client.receive().unwrap().status, 413);
    // Chunked, and over the limit only when read.
    let mut client = server.client();
    client.send(b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    for _ in 0..5 {
        let _ = client.send(format!("3e8\r\n{}\r\n", " ".repeat(1000)).as_bytes());
    }
    let _ = client.send(b"0\r\n\r\n");
    assert_eq!(client.receive().unwrap().status, 413);
    let mut client = server.client();
    let body = many(1, 5);
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    client.send(format!("POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{chunks}").as_bytes()).unwrap();
    assert_eq!(client.receive().unwrap().status, 200);
    // A header over the limit.
    let mut client = server.client();
    client
        .send(format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(20_000)).as_bytes())
        .unwrap();
    assert_eq!(client.receive().unwrap().status, 431);
    // Two at once on one connection, answered in order; the client's request id comes back.
    let mut client = server.client();
    let one = |id: &str| format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-request-id: {id}\r\n\r\n");
    client.send((one("first") + &one("second")).as_bytes()).unwrap();
    for id in ["first", "second"] {
        let answer = client.receive().unwrap();
        assert_eq!((answer.status, answer.header("x-request-id")), (200, Some(id)));
    }
    // HEAD answers like GET, without a body.
    let mut client = server.client();
    client.send(b"HEAD /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    client.stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\n"), "{text}");
    assert_eq!(server.metrics.panics.get(), 0);
    server.stop();
}

/// Every route of the document answers, with a status that the document lists.
#[test]
fn the_document_is_true() {
    let server = Running::model(&LAB.source("a"));
    let document: Value = server.client().get("/openapi.json").json();
    assert_eq!(document, serde_json::to_value(document_of()).unwrap());
    let mut routes = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let concrete = path.replace("{id}", "nowhere").replace("{prefix}", "root").replace("{model}", "rqt");
            for (headers, body) in [("content-type: application/json\r\n", "{}"), ("", "")] {
                let answer = server.client().ask(&method.to_uppercase(), &concrete, headers, body).unwrap();
                let listed = operation["responses"].as_object().unwrap();
                assert!(
                    listed.contains_key(&answer.status.to_string()),
                    "{method} {path}: {} {}",
                    answer.status,
                    answer.body
                );
            }
            routes += 1;
        }
    }
    assert!(routes >= 18, "{routes}");
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
    }
    server.stop();
}

fn document_of() -> impl serde::Serialize {
    document()
}

#[test]
fn tokens_are_asked_for() {
    let tokens = Tokens { user: Some("sesame-open".into()), admin: Some("sesame-change".into()) };
    let version = Version::with_engine(LAB.catalogue(), "stub", Box::new(Stub::default()));
    let server = Running::new(version, None, &Limits::default(), tokens.clone());
    let mut client = server.client();
    let mut ask = |path: &str, token: &str| {
        let token = if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
        let method = if path.contains("admin") || path.contains("recommend") { "POST" } else { "GET" };
        let headers = format!("{token}content-type: application/json\r\n");
        client.ask(method, path, &headers, &entry(&["x"]).to_string()).unwrap().status
    };
    assert_eq!([ask("/v1/info", ""), ask("/v1/info", "sesame-opeN"), ask("/v1/info", "sesame-open")], [401, 401, 200]);
    assert_eq!([ask("/v1/recommend", ""), ask("/v1/recommend", "sesame-open")], [401, 200]);
    assert_eq!([ask("/healthz", ""), ask("/readyz", ""), ask("/", ""), ask("/metrics", "")], [200, 200, 200, 401]);
    assert_eq!([ask("/v1/admin/reload", "sesame-open"), ask("/v1/admin/reload", "sesame-change")], [401, 400]);
    server.stop();
    let everyone = "0.0.0.0:80".parse().unwrap();
    assert!(
        check_address(everyone, &Tokens::default(), false).unwrap_err().to_string().contains("--allow-unauthenticated")
    );
    assert!(
        check_address(everyone, &tokens, false).is_ok() && check_address(everyone, &Tokens::default(), true).is_ok()
    );
    assert!(check_address("[::1]:80".parse().unwrap(), &Tokens::default(), false).is_ok());
}

#[test]
fn an_idle_connection_outlives_the_header_clock() {
    let limits = Limits { header_ms: 300, idle_ms: 1500, ..Limits::default() };
    let server = Running::stub(Stub::default(), &limits);
    let mut client: Client = server.client();
    assert_eq!(client.get("/healthz").status, 200);
    std::thread::sleep(std::time::Duration::from_millis(800));
    assert_eq!(client.get("/healthz").status, 200);
    let began = std::time::Instant::now();
    assert_eq!(client.stream.read(&mut [0; 8]).unwrap_or(0), 0);
    assert!(began.elapsed().as_millis() > 1000, "{:?}", began.elapsed());
    server.stop();
}
