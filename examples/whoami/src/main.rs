//! An app that says who answers and what was asked, as the well-known whoami image does: its name,
//! its host and addresses, who connected, and the request as it arrived. It knows nothing of Weft.
//!
//! Usage: `weft-example-whoami [--name <name>] [--port <port>]`; by default no name and port 80.
//! The environment variables `WHOAMI_NAME` and `WHOAMI_PORT_NUMBER` say the same. Every path is
//! answered alike, but for `/health`, which is empty.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::Incoming,
    header::{HOST, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    env,
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
};
use tokio::net::TcpListener;

/// Who answers.
struct App {
    name: Option<String>,
    hostname: String,
}

struct Options {
    name: Option<String>,
    port: u16,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = match options(env::args().skip(1)) {
        Ok(options) => options,
        Err(wrong) => {
            eprintln!(
                "weft-example-whoami: {wrong}\nusage: weft-example-whoami [--name <name>] [--port <port>]"
            );
            return ExitCode::from(2);
        }
    };
    match serve(options).await {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("weft-example-whoami: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut name = env::var("WHOAMI_NAME").ok();
    let mut port = env::var("WHOAMI_PORT_NUMBER").ok();
    while let Some(flag) = arguments.next() {
        let (flag, value) = match flag.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (flag, arguments.next()),
        };
        let value = value.ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--name" | "-name" => name = Some(value?),
            "--port" | "-port" => port = Some(value?),
            _ => return Err(format!("there is no {flag}")),
        }
    }
    let port = port.as_deref().unwrap_or("80");
    Ok(Options {
        name: name.filter(|n| !n.is_empty()),
        port: port.parse().map_err(|_| format!("{port:?} is no port"))?,
    })
}

async fn serve(options: Options) -> Result<Infallible, String> {
    let listener = listen(options.port).await?;
    let hostname = nix::unistd::gethostname().map_err(|e| format!("no host name: {e}"))?;
    let app = Arc::new(App {
        name: options.name,
        hostname: hostname.to_string_lossy().into_owned(),
    });
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // No descriptors left: those in use will end.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let app = app.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let response = app.answer(&request, peer);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http1().timer(TokioTimer::new());
            // A client that goes away in the middle is its own affair.
            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

/// On all addresses, or on IPv4's where there is no IPv6.
async fn listen(port: u16) -> Result<TcpListener, String> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .await
            .map_err(|e| format!("port {port} can not be listened on: {e}")),
    }
}

impl App {
    fn answer(&self, request: &Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        let body = match request.uri().path() {
            "/health" => String::new(),
            _ => self.text(request, peer, &addresses()),
        };
        let mut response = Response::new(Full::from(body));
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert("content-type", kind);
        response
    }

    fn text<B>(&self, request: &Request<B>, peer: SocketAddr, addresses: &[String]) -> String {
        let mut text = String::new();
        // Writing to a String can not fail.
        if let Some(name) = &self.name {
            let _ = writeln!(text, "Name: {name}");
        }
        let _ = writeln!(text, "Hostname: {}", self.hostname);
        for address in addresses {
            let _ = writeln!(text, "IP: {address}");
        }
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let _ = writeln!(text, "RemoteAddr: {peer}");
        let uri = request.uri();
        let target = uri.path_and_query().map_or("/", |p| p.as_str());
        let _ = writeln!(text, "{} {target} {:?}", request.method(), request.version());
        let host = request.headers().get(HOST).map(|h| h.as_bytes());
        let host = host.or_else(|| uri.authority().map(|a| a.as_str().as_bytes()));
        let host = String::from_utf8_lossy(host.unwrap_or_default());
        let _ = writeln!(text, "Host: {host}");
        let mut headers: Vec<_> = request
            .headers()
            .iter()
            .filter(|(name, _)| *name != HOST)
            .map(|(name, value)| {
                (
                    canonical(name.as_str()),
                    String::from_utf8_lossy(value.as_bytes()),
                )
            })
            .collect();
        // Those of one name stay in their order.
        headers.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (name, value) in headers {
            let _ = writeln!(text, "{name}: {value}");
        }
        text
    }
}

/// `x-forwarded-for` as it is usually written: `X-Forwarded-For`.
fn canonical(name: &str) -> String {
    let mut first = true;
    name.chars()
        .map(|c| {
            let shown = if first { c.to_ascii_uppercase() } else { c };
            first = c == '-';
            shown
        })
        .collect()
}

/// Of all interfaces that are up.
fn addresses() -> Vec<String> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let addresses = all.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| a.ip().to_string());
        v4.or_else(|| address.as_sockaddr_in6().map(|a| a.ip().to_string()))
    });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: Option<&str>) -> App {
        App {
            name: name.map(str::to_owned),
            hostname: "whoami-v1-0".into(),
        }
    }

    #[test]
    fn says_what_arrived() {
        let request = Request::get("/a?b=1")
            .header("host", "whoami.default.svc.cluster.local:80")
            .header("x-forwarded-for", "10.0.0.1")
            .header("accept", "*/*")
            .body(())
            .expect("a request");
        let peer: SocketAddr = "[::ffff:10.0.0.7]:5000".parse().expect("an address");
        let text = app(Some("v1")).text(&request, peer, &["127.0.0.1".into(), "10.0.0.2".into()]);
        assert_eq!(
            text,
            "Name: v1\nHostname: whoami-v1-0\nIP: 127.0.0.1\nIP: 10.0.0.2\nRemoteAddr: 10.0.0.7:5000\n\
             GET /a?b=1 HTTP/1.1\nHost: whoami.default.svc.cluster.local:80\nAccept: */*\n\
             X-Forwarded-For: 10.0.0.1\n"
        );
    }

    #[test]
    fn has_no_name_unless_it_is_given_one() {
        let request = Request::get("/").body(()).expect("a request");
        let peer: SocketAddr = "10.0.0.7:5000".parse().expect("an address");
        let text = app(None).text(&request, peer, &[]);
        assert!(
            text.starts_with("Hostname: whoami-v1-0\nRemoteAddr: 10.0.0.7:5000\n"),
            "{text}"
        );
    }

    #[test]
    fn options_are_read_and_mistakes_named() {
        let read = |words: &[&str]| options(words.iter().map(|w| (*w).to_owned()));
        let good = read(&["--name=v2", "--port", "8080"]).expect("good options");
        assert_eq!((good.name.as_deref(), good.port), (Some("v2"), 8080));
        assert!(read(&["--port", "many"]).is_err_and(|e| e.contains("many")));
        assert!(read(&["--prot", "80"]).is_err_and(|e| e.contains("--prot")));
        assert!(read(&["--name"]).is_err());
    }
}
