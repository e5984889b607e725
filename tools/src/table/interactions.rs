//! Who had to do with what, in which order.

use super::cell::Cell;
use super::rejects::Rejects;
use super::{ItemKeys, ReadOptions, missing_column, source, time};
use crate::error::bad_data;
use rqvae::ItemIdx;
use seqmodel::{Histories, UserHash};
use std::collections::HashMap;
use std::path::Path;

/// Interactions as read; users are in order of first appearance.
#[derive(Debug, Clone)]
pub struct Interactions {
    /// External ids of the users, (users,).
    pub users: Vec<String>,
    /// Items of every user, oldest first.
    pub histories: Histories,
    /// Unix seconds beside `histories`; the position where the table has no times.
    pub times: Vec<Vec<i64>>,
    /// Whether `times` are times.
    pub has_time: bool,
    /// Interactions dropped because their item is not in the catalogue.
    pub unknown_items: usize,
    /// Rows that were unusable.
    pub rejected: usize,
    /// Interactions kept.
    pub count: usize,
}

struct Event {
    item: ItemIdx,
    order: i64,
    time: i64,
}

/// Users and events while a table is read.
struct Gather<'a> {
    keys: &'a ItemKeys,
    at: HashMap<String, usize>,
    users: Vec<String>,
    events: Vec<Vec<Event>>,
    unknown: usize,
    unknown_first: Vec<String>,
    known: usize,
}

impl<'a> Gather<'a> {
    fn new(keys: &'a ItemKeys) -> Self {
        Self {
            keys,
            at: HashMap::new(),
            users: Vec::new(),
            events: Vec::new(),
            unknown: 0,
            unknown_first: Vec::new(),
            known: 0,
        }
    }

    fn user(&mut self, user: String) -> usize {
        if let Some(&row) = self.at.get(&user) {
            return row;
        }
        let row = self.users.len();
        self.at.insert(user.clone(), row);
        self.users.push(user);
        self.events.push(Vec::new());
        row
    }

    fn item(&mut self, key: &str) -> Option<ItemIdx> {
        let found = self.keys.find(key);
        if found.is_some() {
            self.known += 1;
        } else {
            self.unknown += 1;
            if self.unknown_first.len() < 3 {
                self.unknown_first.push(format!("`{key}`"));
            }
        }
        found
    }

    fn finish(
        mut self,
        path: &Path,
        options: &ReadOptions,
        has_time: bool,
        rejected: usize,
    ) -> anyhow::Result<Interactions> {
        let all = self.known + self.unknown;
        if self.unknown as f64 > options.max_unknown_fraction * all as f64 {
            return Err(bad_data(format!(
                "{}: {} of {all} interactions are with items that the catalogue lacks (such as {}), at most a \
                 fraction of {} may be; is this another catalogue's file?",
                path.display(),
                self.unknown,
                self.unknown_first.join(", "),
                options.max_unknown_fraction
            )));
        }
        if self.unknown > 0 {
            tracing::warn!(
                file = %path.display(),
                unknown = self.unknown,
                interactions = all,
                "interactions with unknown items dropped"
            );
        }
        if all == 0 {
            return Err(bad_data(format!("{}: no interactions; expected one a row", path.display())));
        }
        let times = self.events.iter().flatten().map(|event| event.time);
        let milliseconds = has_time
            && time::in_milliseconds(times).map_err(|reason| bad_data(format!("{}: {reason}", path.display())))?;
        for events in &mut self.events {
            events.sort_by_key(|event| event.order);
        }
        let unit = if milliseconds { 1000 } else { 1 };
        let times = self.events.iter().map(|events| events.iter().map(|e| e.time.div_euclid(unit)).collect()).collect();
        let items = self.events.iter().map(|events| events.iter().map(|event| event.item).collect());
        Ok(Interactions {
            histories: Histories::of_users(self.users.iter().map(|id| Some(UserHash::of(id))).zip(items)),
            users: self.users,
            times,
            has_time,
            unknown_items: self.unknown,
            rejected,
            count: self.known,
        })
    }
}

/// Reads interactions: `user_id`, `item_id` and `position` or `timestamp`.
///
/// Within a user the order is by `position` where the table has one, else by (`timestamp`, order of the rows).
///
/// # Errors
/// Input missing; bad data when a needed column is missing, too many rows are unusable, too many items unknown, or
/// times come in mixed units.
pub fn read_interactions(path: &Path, keys: &ItemKeys, options: &ReadOptions) -> anyhow::Result<Interactions> {
    let found = source::columns(path)?;
    let has = |name: &str| found.iter().any(|column| column == name);
    for name in ["user_id", "item_id"] {
        if !has(name) {
            return Err(missing_column(path, name, &found));
        }
    }
    let (has_position, has_time) = (has("position"), has("timestamp"));
    if !has_position && !has_time {
        return Err(missing_column(path, "timestamp", &found).context("interactions need `timestamp` or `position`"));
    }
    let parse = |cells: &[Cell]| -> Result<(String, String, i64, i64), String> {
        let position = if has_position { Some(cells[2].whole("position")?) } else { None };
        let time = if has_time { Some(time::instant(&cells[3], "timestamp")?) } else { None };
        Ok((
            cells[0].key("user_id")?,
            cells[1].key("item_id")?,
            position.or(time).unwrap_or_default(),
            time.or(position).unwrap_or_default(),
        ))
    };
    let mut rejects = Rejects::new(path, options.rejects_to.as_deref());
    let mut gather = Gather::new(keys);
    let wanted = ["user_id", "item_id", "position", "timestamp"];
    let rows = source::scan(path, &wanted, &mut |record| match record.cells.and_then(|cells| parse(&cells)) {
        Ok((user, item, order, time)) => {
            if let Some(item) = gather.item(&item) {
                let user = gather.user(user);
                gather.events[user].push(Event { item, order, time });
            }
            Ok(())
        }
        Err(reason) => rejects.push(record.line, record.weight, &reason),
    })?;
    let rejected = rejects.finish(rows, options.max_reject_fraction)?;
    gather.finish(path, options, has_time, rejected)
}

/// Reads histories to recommend for: `user_id` and `history` (a list of item ids, oldest first), or interactions.
///
/// A user whose history is empty, or holds unknown items only, stays with an empty history.
///
/// # Errors
/// As [`read_interactions`]; a user twice is an unusable row.
pub fn read_histories(path: &Path, keys: &ItemKeys, options: &ReadOptions) -> anyhow::Result<Interactions> {
    let found = source::columns(path)?;
    if !found.iter().any(|column| column == "history") {
        return read_interactions(path, keys, options);
    }
    if !found.iter().any(|column| column == "user_id") {
        return Err(missing_column(path, "user_id", &found));
    }
    let mut rejects = Rejects::new(path, options.rejects_to.as_deref());
    let mut gather = Gather::new(keys);
    let rows = source::scan(path, &["user_id", "history"], &mut |record| {
        let parsed = record.cells.and_then(|cells| Ok((cells[0].key("user_id")?, history(&cells[1])?)));
        let (user, items) = match parsed {
            Ok((user, _)) if gather.at.contains_key(&user) => {
                let reason = format!("`user_id` `{user}` has a history already");
                return rejects.push(record.line, record.weight, &reason);
            }
            Ok(parsed) => parsed,
            Err(reason) => return rejects.push(record.line, record.weight, &reason),
        };
        let user = gather.user(user);
        for (order, item) in (0..).zip(items) {
            if let Some(item) = gather.item(&item) {
                gather.events[user].push(Event { item, order, time: order });
            }
        }
        Ok(())
    })?;
    let rejected = rejects.finish(rows, options.max_reject_fraction)?;
    gather.finish(path, options, false, rejected)
}

/// Item ids of a list, or of a text: a JSON list or ids separated by blanks or commas.
fn history(cell: &Cell) -> Result<Vec<String>, String> {
    match cell {
        Cell::List(cells) => cells.iter().map(|cell| cell.key("history")).collect(),
        Cell::Null => Ok(Vec::new()),
        Cell::Text(text) if text.trim_start().starts_with('[') => {
            let list = serde_json::from_str(text).map_err(|e| format!("`history` is no list of item ids: {e}"))?;
            history(&Cell::from_json(list))
        }
        Cell::Text(text) => Ok(text
            .split(|c: char| c == ',' || c.is_whitespace())
            .filter(|id| !id.is_empty())
            .map(str::to_owned)
            .collect()),
        _ => Err("`history` is no list of item ids".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = fn(&Path, &ItemKeys, &ReadOptions) -> anyhow::Result<Interactions>;

    fn read(with: Read, name: &str, text: &str, options: &ReadOptions) -> anyhow::Result<Interactions> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let keys = ItemKeys::new(["a", "b", "c", "007"].map(str::to_owned).to_vec()).unwrap();
        with(&path, &keys, options)
    }

    fn lax() -> ReadOptions {
        ReadOptions { max_reject_fraction: 1.0, max_unknown_fraction: 1.0, ..ReadOptions::default() }
    }

    fn items(read: &Interactions, user: usize) -> Vec<u32> {
        read.histories.of(user).iter().map(|item| item.0).collect()
    }

    #[test]
    fn equal_times_keep_the_order_of_the_rows() {
        let text = "user_id,item_id,timestamp\nv,c,9\nu,b,5\nu,a,5\nu,c,-4\nv,007,2014-07-23\n";
        let got = read(read_interactions, "i.csv", text, &ReadOptions::default()).unwrap();
        assert_eq!(got.users, ["v", "u"]);
        assert_eq!(items(&got, 1), [2, 1, 0]);
        assert_eq!(items(&got, 0), [2, 3]);
        assert_eq!(got.times[0], [9, 1_406_073_600]);
        assert!(got.has_time);
        assert_eq!(got.count, 5);
    }

    #[test]
    fn position_goes_before_time() {
        let text = "{\"user_id\":1,\"item_id\":\"a\",\"position\":1,\"timestamp\":3}\n\
                    {\"user_id\":1,\"item_id\":\"b\",\"position\":0,\"timestamp\":4}\n";
        let got = read(read_interactions, "i.jsonl", text, &ReadOptions::default()).unwrap();
        assert_eq!(items(&got, 0), [1, 0]);
        assert_eq!(got.times[0], [4, 3]);
        let text = "user_id\titem_id\tposition\n1\ta\t5\n";
        let got = read(read_interactions, "i.tsv", text, &ReadOptions::default()).unwrap();
        assert!(!got.has_time);
        assert_eq!(got.times[0], [5]);
    }

    #[test]
    fn unknown_items_are_counted_and_many_stop_the_run() {
        let text = "user_id,item_id,position\nu,a,0\nu,x,1\nu,b,2\nw,7,0\n";
        let got = read(read_interactions, "i.csv", text, &lax()).unwrap();
        assert_eq!((got.unknown_items, got.count), (2, 2));
        assert_eq!(got.users, ["u"]);
        let error = read(read_interactions, "i.csv", text, &ReadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("2 of 4") && error.contains("`x`"), "{error}");
    }

    #[test]
    fn bad_rows_are_rejected_and_missing_columns_named() {
        let text = "user_id,item_id,timestamp\nu,a,soon\n,a,1\nu,a\nu,a,1\n";
        let got = read(read_interactions, "i.csv", text, &lax()).unwrap();
        assert_eq!((got.rejected, got.count), (3, 1));
        let error = read(read_interactions, "i.csv", "user_id,item_id,time\n", &lax()).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("`timestamp` or `position`"), "{error}");
        let error = read(read_interactions, "i.csv", "user,item_id,timestamp\n", &lax()).unwrap_err().to_string();
        assert!(error.contains("no column `user_id`"), "{error}");
    }

    #[test]
    fn milliseconds_become_seconds_and_mixed_units_are_refused() {
        let text = "user_id,item_id,timestamp\nu,a,1406073600500\nu,b,1406073600400\n";
        let got = read(read_interactions, "i.csv", text, &lax()).unwrap();
        assert_eq!(items(&got, 0), [1, 0]);
        assert_eq!(got.times[0], [1_406_073_600; 2]);
        let text = "user_id,item_id,timestamp\nu,a,1406073600500\nu,b,1406073600\n";
        let error = read(read_interactions, "i.csv", text, &lax()).unwrap_err();
        assert!(error.to_string().contains("mixed units"), "{error}");
    }

    #[test]
    fn histories_are_lists_or_interactions() {
        let text = "{\"user_id\":\"u\",\"history\":[\"b\",\"x\",\"a\"]}\n{\"user_id\":\"v\",\"history\":[]}\n\
                    {\"user_id\":\"u\",\"history\":[]}\n";
        let got = read(read_histories, "h.jsonl", text, &lax()).unwrap();
        assert_eq!(got.users, ["u", "v"]);
        assert_eq!(items(&got, 0), [1, 0]);
        assert!(items(&got, 1).is_empty());
        assert_eq!((got.unknown_items, got.rejected), (1, 1));
        let text = "user_id,history\nu,007 a\nv,\"[\"\"b\"\"]\"\n";
        let got = read(read_histories, "h.csv", text, &ReadOptions::default()).unwrap();
        assert_eq!((items(&got, 0), items(&got, 1)), (vec![3, 0], vec![1]));
        let text = "user_id,item_id,position\nu,a,0\n";
        assert_eq!(read(read_histories, "h.csv", text, &lax()).unwrap().count, 1);
    }
}
