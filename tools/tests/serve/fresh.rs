//! Items that come and go while the server runs.

use super::client::ids;
use super::server::{LAB, Running};
use serde_json::json;

#[test]
fn new_items_are_found_at_once_and_removed_ones_no_more() {
    let server = Running::model(&LAB.source("a"));
    let mut client = server.client();
    let key = LAB.catalogue().keys.key(rqvae::ItemIdx(4)).to_string();
    let versions = |value: &serde_json::Value| value["index_version"].as_str().unwrap().to_string();
    let first = versions(&client.get("/v1/info").json());
    let new = json!({"items": [
        {"item_id": "NEW-1", "title": "Cordless Belt Sander, Blue", "categories": ["Workshop", "Sanders"]},
        {"item_id": "NEW-2", "title": "Copper Kettle"},
    ]});
    let answer = client.post("/v1/admin/items", &new);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let value = answer.json();
    assert_eq!((&value["changed"]["added"], &value["items"]), (&json!(2), &json!(302)));
    assert_eq!(value["changed"]["sids"][0]["title"], "Cordless Belt Sander, Blue");
    assert_ne!(versions(&value), first);
    assert_eq!(client.get("/v1/items?q=copper%20kettle").json()["items"][0]["item_id"], "NEW-2");
    let mut only = |allow: &[&str]| {
        let body = json!({"requests": [{"history": [key, "NEW-1"], "exclude_seen": false, "allow": allow}]});
        let value = client.post("/v1/recommend", &body).json();
        assert_eq!(value["results"][0]["unknown_items"], 0);
        ids(&value)
    };
    let mut found = only(&["NEW-1", "NEW-2"]);
    found.sort();
    assert_eq!(found, ["NEW-1", "NEW-2"]);
    let body = json!({"requests": [{"history": [key], "only_new": true, "k": 300}]});
    let listed = ids(&client.post("/v1/recommend", &body).json());
    assert!(listed.contains(&"NEW-1".to_string()) && listed.contains(&"NEW-2".to_string()));

    // The same again changes nothing; a reload keeps what came through the server.
    let again = client.post("/v1/admin/items", &new).json();
    assert_eq!((&again["changed"]["known"], &again["items"]), (&json!(2), &json!(302)));
    assert_eq!(client.post("/v1/admin/reload", &json!({})).json()["items"], 302);

    let mut remove = |ids: &serde_json::Value| {
        client
            .ask("DELETE", "/v1/admin/items", "content-type: application/json\r\n", &json!({"items": ids}).to_string())
            .unwrap()
    };
    let gone = remove(&json!(["NEW-2", key]));
    assert_eq!(gone.status, 200, "{}", gone.body);
    assert_eq!(gone.json()["changed"]["removed"], 2);
    assert_eq!(remove(&json!(["nowhere"])).status, 409);
    let body = json!({"requests": [{"history": [key], "exclude_seen": false, "allow": ["NEW-1", "NEW-2", key]}]});
    assert_eq!(ids(&client.post("/v1/recommend", &body).json()), ["NEW-1"]);
    assert_eq!(client.get("/v1/items/NEW-2").json()["live"], false);
    server.stop();
}
