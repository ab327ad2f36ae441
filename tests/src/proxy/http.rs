//! As much of HTTP/1.1 as a proxy needs: heads as lines, bodies by length or in chunks.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;

/// A request or an answer.
#[derive(Clone, Debug)]
pub struct Message {
    /// Request line or status line.
    pub first: String,
    /// Names and values as sent.
    pub headers: Vec<(String, String)>,
    /// The complete body.
    pub body: Vec<u8>,
}

impl Message {
    /// Reads a message; `None` where the connection ends before one. `has_body`: false for the answer to a HEAD.
    ///
    /// # Errors
    /// As the connection; `InvalidData` if it is not HTTP.
    pub fn read(stream: &mut BufReader<TcpStream>, has_body: bool) -> Result<Option<Self>> {
        let mut first = String::new();
        if stream.read_line(&mut first)? == 0 {
            return Ok(None);
        }
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or(ErrorKind::InvalidData)?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut message = Self { first: first.trim_end().to_owned(), headers, body: Vec::new() };
        if has_body {
            message.read_body(stream)?;
        }
        Ok(Some(message))
    }

    fn read_body(&mut self, stream: &mut BufReader<TcpStream>) -> Result<()> {
        if self.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
            loop {
                let mut line = String::new();
                stream.read_line(&mut line)?;
                let digits = line.split(';').next().unwrap_or_default().trim();
                let len =
                    usize::from_str_radix(digits, 16).map_err(|_| Error::from(ErrorKind::InvalidData))?;
                let start = self.body.len();
                self.body.resize(start + len, 0);
                stream.read_exact(&mut self.body[start..])?;
                stream.read_line(&mut String::new())?;
                if len == 0 {
                    break;
                }
            }
            // It is passed on by its length.
            self.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("transfer-encoding"));
            self.set_header("Content-Length", &self.body.len().to_string());
        } else if let Some(len) = self.header("content-length") {
            let len = len.parse().map_err(|_| Error::from(ErrorKind::InvalidData))?;
            self.body = vec![0; len];
            stream.read_exact(&mut self.body)?;
        }
        Ok(())
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Replaces a header, or adds it.
    pub fn set_header(&mut self, name: &str, value: &str) {
        self.headers.retain(|(found, _)| !found.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// Removes scheme and host from a request's target, as only a proxy receives them.
    pub fn make_relative(&mut self) {
        if let Some((method, rest)) = self.first.split_once(" http://") {
            let path = rest.find('/').map_or(rest, |at| &rest[at..]);
            self.first = format!("{method} {path}");
        }
    }

    /// The head as it is sent.
    pub fn head(&self) -> Vec<u8> {
        let mut head = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// Sends it completely.
    ///
    /// # Errors
    /// As the connection.
    pub fn send(&self, stream: &mut TcpStream) -> Result<()> {
        stream.write_all(&[self.head(), self.body.clone()].concat())
    }
}
