//! A plain HTTP/1.1 client on one connection.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub(crate) struct Client {
    pub(crate) stream: BufReader<TcpStream>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) took: Duration,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, text: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(text)
    }

    pub(crate) fn receive(&mut self) -> Result<Answer> {
        let began = Instant::now();
        let mut line = String::new();
        let mut next = |stream: &mut BufReader<TcpStream>| {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Err(Error::from(ErrorKind::UnexpectedEof));
            }
            Ok(line.trim_end().to_string())
        };
        let status = next(&mut self.stream)?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(ErrorKind::InvalidData)?;
        let mut headers = Vec::new();
        loop {
            let line = next(&mut self.stream)?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
        let mut answer = Answer { status, headers, body: String::new(), took: Duration::ZERO };
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        answer.body = String::from_utf8(body).unwrap();
        answer.took = began.elapsed();
        Ok(answer)
    }

    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Result<Answer> {
        let length = body.len();
        let text = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n{body}");
        let began = Instant::now();
        self.send(text.as_bytes())?;
        let answer = self.receive()?;
        Ok(Answer { took: began.elapsed(), ..answer })
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.ask("GET", path, "", "").unwrap()
    }

    pub(crate) fn post(&mut self, path: &str, body: &serde_json::Value) -> Answer {
        self.ask("POST", path, "content-type: application/json\r\n", &body.to_string()).unwrap()
    }
}

/// One entry with that history.
pub(crate) fn entry(history: &[&str]) -> serde_json::Value {
    serde_json::json!({"requests": [{"history": history, "k": 5, "beam_width": 20}]})
}

/// Ids of the first result.
pub(crate) fn ids(answer: &serde_json::Value) -> Vec<String> {
    let items = answer["results"][0]["items"].as_array().unwrap();
    items.iter().map(|item| item["item_id"].as_str().unwrap().to_string()).collect()
}
