//! A proxy before an object store, also one in the sense of HTTP_PROXY, with the faults of networks and overloaded
//! servers, scripted request by request.
//!
//! Each connection has a thread and a connection of its own behind it. A request is read completely before it is
//! handled, and so is its answer.

mod http;

pub use http::Message;

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufReader, Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How a request is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is passed on, and so is its answer.
    None,
    /// The same, later.
    Delay(Duration),
    /// The connection is reset before the request gets anywhere.
    Reset,
    /// The request is passed on, and the connection is reset in place of the answer.
    ResetApplied,
    /// The request is passed on, and the answer is 503.
    UnavailableApplied,
    /// The answer is this status, and the server behind never sees the request.
    Status(u16),
    /// As 503, with a wait asked for in seconds.
    RetryAfter(u64),
    /// The body of the answer ends halfway, and with it the connection.
    Truncated,
    /// The body of the answer ends halfway, and its stated length is that half.
    Shortened,
    /// An absent object is answered as to a client that may not list the bucket: 403.
    HideAbsence,
    /// The answer is a denial, and the server behind never sees the request.
    Deny,
    /// In place of a range the complete object comes, or an answer that looks like one.
    WholeObject,
    /// The answer says that it is another range.
    WrongContentRange,
    /// One bit in the middle of the answer's body is flipped.
    FlippedBit,
    /// Nothing comes any more.
    Hang,
    /// Half of the answer's body comes, then nothing.
    HangInBody,
}

type Script = Box<dyn FnMut(&Message) -> Fault + Send>;

/// A running proxy. Its threads end with their connections.
pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    script: Script,
    requests: Vec<String>,
    faults: BTreeMap<String, u64>,
    connections: u64,
}

impl Proxy {
    /// A proxy before the server on this port, without faults yet.
    ///
    /// # Panics
    /// When no port can be had.
    pub fn new(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
        let port = listener.local_addr().expect("it has a port").port();
        let state = State {
            script: Box::new(|_| Fault::None),
            requests: Vec::new(),
            faults: BTreeMap::new(),
            connections: 0,
        };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let state = shared.clone();
                lock(&state).connections += 1;
                std::thread::spawn(move || {
                    // Broken connections are its purpose.
                    let _ = serve(connection, server, &state);
                });
            }
        });
        Self { port, state }
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on `script` decides about every request; all counts start again.
    pub fn script(&self, script: impl FnMut(&Message) -> Fault + Send + 'static) {
        let mut state = lock(&self.state);
        state.script = Box::new(script);
        state.requests.clear();
        state.faults.clear();
        state.connections = 0;
    }

    /// Applies these faults to the next requests, one each, and none to later ones.
    pub fn next(&self, faults: &[Fault]) {
        let mut faults: VecDeque<Fault> = faults.iter().copied().collect();
        self.script(move |_| faults.pop_front().unwrap_or(Fault::None));
    }

    /// Methods and targets of the requests since the last script, in order.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.state).requests.clone()
    }

    /// How often each fault came since the last script.
    pub fn faults(&self) -> BTreeMap<String, u64> {
        lock(&self.state).faults.clone()
    }

    /// Connections since the last script.
    pub fn connections(&self) -> u64 {
        lock(&self.state).connections
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves one connection until one of its sides, or a fault, ends it.
fn serve(client: TcpStream, server: u16, state: &Mutex<State>) -> Result<()> {
    client.set_nodelay(true)?;
    let server = TcpStream::connect(("127.0.0.1", server))?;
    server.set_nodelay(true)?;
    let mut requests = BufReader::new(client.try_clone()?);
    let mut link = Link { client, answers: BufReader::new(server.try_clone()?), server };
    while let Some(mut request) = Message::read(&mut requests, true)? {
        let fault = {
            let mut state = lock(state);
            let fault = (state.script)(&request);
            let target: Vec<&str> = request.first.split(' ').take(2).collect();
            state.requests.push(target.join(" "));
            request.make_relative();
            *state.faults.entry(format!("{fault:?}")).or_default() += 1;
            fault
        };
        if !link.act(request, fault)? {
            break;
        }
    }
    link.server.shutdown(Shutdown::Both)
}

/// The two sides of a connection.
struct Link {
    client: TcpStream,
    server: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Link {
    /// Deals with one request; whether the connection goes on.
    fn act(&mut self, request: Message, fault: Fault) -> Result<bool> {
        match fault {
            Fault::Reset => return self.reset(),
            Fault::Hang => return self.hang(),
            Fault::Deny => return self.refuse(403, "AccessDenied", None),
            Fault::Status(status) => return self.refuse(status, "SlowDown", None),
            Fault::RetryAfter(seconds) => return self.refuse(503, "SlowDown", Some(seconds)),
            Fault::Delay(time) => std::thread::sleep(time),
            _ => {}
        }
        request.send(&mut self.server)?;
        let has_body = !request.first.starts_with("HEAD ");
        let Some(mut answer) = Message::read(&mut self.answers, has_body)? else { return Ok(false) };
        let half = answer.body.len() / 2;
        match fault {
            Fault::ResetApplied => return self.reset(),
            Fault::UnavailableApplied => return self.refuse(503, "SlowDown", None),
            Fault::HideAbsence if answer.first.contains(" 404 ") => {
                answer.first = "HTTP/1.1 403 Forbidden".to_owned();
                if has_body {
                    answer.body =
                        b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>".to_vec();
                    answer.set_header("Content-Length", &answer.body.len().to_string());
                }
            }
            Fault::Truncated | Fault::HangInBody => {
                self.client.write_all(&answer.head())?;
                self.client.write_all(&answer.body[..half])?;
                return if fault == Fault::Truncated { Ok(false) } else { self.hang() };
            }
            Fault::Shortened => {
                answer.body.truncate(half);
                if has_body {
                    answer.set_header("Content-Length", &half.to_string());
                }
            }
            Fault::WholeObject if answer.header("content-range").is_some() => {
                answer.first = "HTTP/1.1 200 OK".to_owned();
                answer.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("content-range"));
                answer.body.extend(b"and what lies behind it");
                answer.set_header("Content-Length", &answer.body.len().to_string());
            }
            Fault::WrongContentRange => {
                if let Some(range) = answer.header("content-range") {
                    let other = range.replacen("bytes ", "bytes 1", 1);
                    answer.set_header("Content-Range", &other);
                }
            }
            Fault::FlippedBit => {
                if let Some(byte) = answer.body.get_mut(half) {
                    *byte ^= 1;
                }
            }
            _ => {}
        }
        answer.send(&mut self.client)?;
        Ok(true)
    }

    /// Answers in the server's place.
    fn refuse(&mut self, status: u16, code: &str, retry_after: Option<u64>) -> Result<bool> {
        let body = format!("<Error><Code>{code}</Code><Message>injected</Message></Error>");
        let wait = retry_after.map_or(String::new(), |seconds| format!("Retry-After: {seconds}\r\n"));
        let len = body.len();
        let head = format!(
            "HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {len}\r\n{wait}\r\n"
        );
        self.client.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        Ok(true)
    }

    /// Ends the connection with a reset in place of a close.
    fn reset(&mut self) -> Result<bool> {
        rustix::net::sockopt::set_socket_linger(&self.client, Some(Duration::ZERO))?;
        Ok(false)
    }

    /// Sends nothing more, and waits until the client closes.
    fn hang(&mut self) -> Result<bool> {
        let mut rest = [0; 1 << 12];
        while self.client.read(&mut rest)? > 0 {}
        Ok(false)
    }
}
