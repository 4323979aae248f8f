//! The scaffold of every Weft process: flags, configuration, telemetry, drain and exit codes, the
//! same for all.
//!
//! A binary's `main` is one call:
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use weft_service::{Context, Info, Secrets};
//!
//! #[derive(Debug, Default, Serialize, Deserialize)]
//! #[serde(default, deny_unknown_fields)]
//! struct Config {
//!     listen: String,
//!     telemetry: weft_telemetry::TelemetryConfig,
//! }
//!
//! #[derive(Debug, clap::Args, Serialize)]
//! struct Flags {
//!     /// Where to listen
//!     #[arg(long, env = "WEFT_EXAMPLE_LISTEN")]
//!     #[serde(skip_serializing_if = "Option::is_none")]
//!     listen: Option<String>,
//! }
//!
//! const INFO: Info = Info { binary: "weft-example", name: "example", about: "Shows the scaffold", metrics_port: 7399, secrets: &[] };
//!
//! fn main() -> std::process::ExitCode {
//!     weft_service::main::<Config, Flags, std::io::Error, _, _>(
//!         INFO,
//!         |config| &config.telemetry,
//!         |config: Config, mut context: Context| async move {
//!             println!("would listen on {}", config.listen);
//!             context.drain.draining().await;
//!             Ok(())
//!         },
//!     )
//! }
//! ```
//!
//! Exit codes: 0 drained, 2 wrong flags or configuration, 1 everything else, each failure as one
//! line on standard error.

mod health;

use clap::{Args, CommandFactory, FromArgMatches, Parser};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    ffi::OsString,
    fmt::Display,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};
use weft_drain::{Outcome, Signals, Trigger, Watcher};
use weft_telemetry::{Health, Metrics, TelemetryConfig};

/// What is fixed about a binary.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// The binary's own name, `weft-policy`.
    pub binary: &'static str,
    /// `policy` for `weft-policy`: names the configuration file, the metrics and the log's service.
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// Port of `/metrics` and `/healthz` on loopback unless configured otherwise.
    pub metrics_port: u16,
    /// Top-level configuration fields that `--check-config` must not print.
    pub secrets: Secrets,
}

/// Names of fields whose values are not shown.
pub type Secrets = &'static [&'static str];

/// What a process is handed beside its configuration.
#[derive(Debug, Clone)]
pub struct Context {
    /// Starts draining at SIGINT or SIGTERM.
    pub drain: Watcher,
    /// Served on the metrics port.
    pub metrics: Metrics,
    /// Served on the metrics port.
    pub health: Health,
}

/// Exit code of a process that drained or did what it was asked.
const DONE: u8 = 0;
/// Exit code of everything that is no mistake in flags or configuration.
const FAILED: u8 = 1;
/// Exit code of wrong flags or configuration.
const USAGE: u8 = 2;

/// A process that has not started by then says what it waits for, and where to look.
const SLOW_START: Duration = Duration::from_secs(10);
/// Running calls get this long to finish after the first signal.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Common<F: Args> {
    // What is particular to the process comes first in its `--help`.
    #[command(flatten)]
    own: F,
    #[command(flatten, next_help_heading = "Options of every Weft process")]
    shared: Shared,
}

#[derive(Debug, Args)]
struct Shared {
    /// Configuration file (YAML); flags and environment override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, print what is in force, and exit
    #[arg(long)]
    check_config: bool,
    /// Ask the running process whether it is ready: print what its /healthz says, exit 0 or 1
    #[arg(long, conflicts_with = "check_config")]
    check_health: bool,
    /// Log level or filter, as `info` or `info,weft_rpc=debug`
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Form of log lines
    #[arg(long, env = "WEFT_LOG_FORMAT", value_parser = ["auto", "text", "json"])]
    log_format: Option<String>,
    /// Export traces and logs by OTLP/gRPC, as http://127.0.0.1:4317
    #[arg(long, env = "WEFT_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Where /metrics and /healthz are served
    #[arg(long, env = "WEFT_METRICS_LISTEN", value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
}

/// Runs a process from its arguments to its exit code.
///
/// `telemetry` finds the common part inside the configuration; it is the field `telemetry` there.
pub fn main<C, F, E, Fut, Run>(info: Info, telemetry: fn(&C) -> &TelemetryConfig, run: Run) -> ExitCode
where
    C: Serialize + DeserializeOwned + Default,
    F: Args + Serialize,
    E: Display,
    Fut: Future<Output = Result<(), E>>,
    Run: FnOnce(C, Context) -> Fut,
{
    ExitCode::from(main_from::<C, F, E, Fut, Run>(
        std::env::args_os(),
        info,
        telemetry,
        run,
    ))
}

/// [`main`] with the arguments given, the first being the program's name; returns the exit code.
pub fn main_from<C, F, E, Fut, Run>(
    arguments: impl IntoIterator<Item = OsString>,
    info: Info,
    telemetry: fn(&C) -> &TelemetryConfig,
    run: Run,
) -> u8
where
    C: Serialize + DeserializeOwned + Default,
    F: Args + Serialize,
    E: Display,
    Fut: Future<Output = Result<(), E>>,
    Run: FnOnce(C, Context) -> Fut,
{
    let binary = info.binary;
    let command = Common::<F>::command()
        .name(binary)
        .about(info.about)
        .after_help(more_help(&info))
        .version(weft_model::VERSION);
    let flags = match command
        .try_get_matches_from(arguments)
        .and_then(|matches| Common::<F>::from_arg_matches(&matches))
    {
        Ok(flags) => flags,
        Err(error) if !error.use_stderr() => {
            // `--help` and `--version`. A reader that went away does not matter.
            let _ = error.print();
            return DONE;
        }
        Err(error) => return fail(binary, &usage(binary, &error), USAGE),
    };
    let config: C = match weft_config::load(
        flags.shared.config.as_deref(),
        &weft_config::default_file(info.name),
        &layer(&flags),
    ) {
        Ok(config) => config,
        Err(error) => return fail(binary, &error, USAGE),
    };
    if let Err(error) = telemetry(&config).check() {
        return fail(binary, &error, USAGE);
    }
    if let Some(error) = two_tokens(&config) {
        return fail(binary, &error, USAGE);
    }
    if flags.shared.check_config {
        return match shown(&config, info.secrets) {
            Ok(text) => {
                // A reader that went away (`| head`) does not matter.
                let _ = writeln!(io::stdout().lock(), "{text}");
                DONE
            }
            Err(error) => fail(binary, &error, FAILED),
        };
    }
    if flags.shared.check_health {
        return match health::ask(metrics_address(&info, telemetry(&config))) {
            Ok((ready, text)) => {
                let _ = write!(io::stdout().lock(), "{text}");
                if ready { DONE } else { FAILED }
            }
            Err(error) => fail(binary, &error, FAILED),
        };
    }
    weft_tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(binary, &format!("cannot start threads: {error}"), FAILED),
    };
    let code = runtime.block_on(drive(&info, config, telemetry, run));
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

fn metrics_address(info: &Info, settings: &TelemetryConfig) -> SocketAddr {
    let built_in = ([127, 0, 0, 1], info.metrics_port).into();
    settings.metrics_listen.unwrap_or(built_in)
}

/// One of the two would be left out without a word. From whatever layers they come.
fn two_tokens<C: Serialize>(config: &C) -> Option<&'static str> {
    let value = serde_json::to_value(config).ok()?;
    let set = |field: &str| value.get(field).is_some_and(|v| !v.is_null());
    (set("join_token") && set("join_token_file")).then_some(
        "join_token and join_token_file are both set, by flags, environment or file; set one of them",
    )
}

/// What `--help` says below the flags.
fn more_help(info: &Info) -> String {
    let Info {
        binary, metrics_port, ..
    } = info;
    let file = weft_config::default_file(info.name);
    format!(
        "Configuration: a flag counts before its WEFT_* variable, that before the file ({file}, or the one named \
         with --config), that before what is built in. `{binary} --check-config` prints what is in force, \
         defaults included, in the form of the file.\n\n\
         Metrics and health: http://127.0.0.1:{metrics_port}/metrics and /healthz, unless --metrics-listen says \
         otherwise. SIGTERM or Ctrl-C finishes what runs and ends; a second one ends at once.\n\n\
         Exit codes: 0 done, 2 wrong flags or configuration, 1 everything else.",
        file = file.display(),
    )
}

/// The flags as a layer over the file: a process's own at the top, the common ones under `telemetry`.
fn layer<F: Args + Serialize>(flags: &Common<F>) -> Value {
    let Common { own, shared } = flags;
    let mut own = serde_json::to_value(own).unwrap_or(Value::Null);
    if !own.is_object() {
        own = json!({});
    }
    let mut common = serde_json::Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            common.insert(key.into(), value);
        }
    };
    put("log", shared.log.clone().map(Value::from));
    put("log_format", shared.log_format.clone().map(Value::from));
    put("otlp_endpoint", shared.otlp_endpoint.clone().map(Value::from));
    put(
        "metrics_listen",
        shared.metrics_listen.map(|a| a.to_string().into()),
    );
    if !common.is_empty() {
        own["telemetry"] = common.into();
    }
    own
}

async fn drive<C, E, Fut, Run>(info: &Info, config: C, telemetry: fn(&C) -> &TelemetryConfig, run: Run) -> u8
where
    E: Display,
    Fut: Future<Output = Result<(), E>>,
    Run: FnOnce(C, Context) -> Fut,
{
    let binary = info.binary;
    let settings = telemetry(&config).clone();
    let guard = match weft_telemetry::init(binary, &settings) {
        Ok(guard) => guard,
        Err(error) => return fail(binary, &error, USAGE),
    };
    // From here on a signal drains, however early it comes.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(binary, &format!("cannot catch signals: {error}"), FAILED),
    };
    let (metrics, health) = (Metrics::new(info.name), Health::default());
    let (trigger, drain) = weft_drain::channel();
    let address = metrics_address(info, &settings);
    let listener = match weft_telemetry::http::bind(address).await {
        Ok(listener) => listener,
        Err(error) => return fail(binary, &error, FAILED),
    };
    let address = listener.local_addr().unwrap_or(address);
    tokio::spawn(weft_telemetry::http::serve(
        listener,
        metrics.clone(),
        health.clone(),
        drain.clone(),
    ));
    if let Some(endpoint) = &settings.otlp_endpoint
        && let Err(error) = weft_telemetry::push(binary, endpoint, metrics.clone(), drain.clone())
    {
        return fail(binary, &error, USAGE);
    }
    let started = started(binary, address, health.clone());
    let work = run(
        config,
        Context {
            drain,
            metrics,
            health,
        },
    );
    tokio::pin!(work, started);
    let done = tokio::select! {
        // A failure is looked for first: who ends with an error has not started.
        biased;
        done = &mut work => done,
        never = &mut started => match never {},
        signal = signals.next() => {
            tracing::info!(signal, "draining; a second signal stops at once");
            tokio::select! {
                ended = drained(trigger, work) => ended,
                _ = signals.next() => return FAILED,
            }
        }
    };
    // Exporters block; they must not do so on the runtime's own threads.
    let _ = tokio::task::spawn_blocking(move || guard.finish()).await;
    match done {
        Ok(()) => DONE,
        Err(error) => fail(binary, &error, FAILED),
    }
}

/// Says that the process serves, once it does: one that cannot start leaves its error and no other line.
async fn started(binary: &str, metrics: SocketAddr, health: Health) -> Infallible {
    let version = weft_model::VERSION;
    if tokio::time::timeout(SLOW_START, health.until_ready())
        .await
        .is_err()
    {
        let waits: Vec<String> = health
            .parts()
            .into_iter()
            .filter_map(|(part, state)| Some(format!("{part}: {}", state.err()?)))
            .collect();
        tracing::info!(version, %metrics, waits = waits.join("; "), "{binary} is still starting");
        health.until_ready().await;
    }
    tracing::info!(version, %metrics, "{binary} started");
    std::future::pending().await
}

async fn drained<E>(trigger: Trigger, work: impl Future<Output = Result<(), E>>) -> Result<(), E> {
    let (done, outcome) = tokio::join!(
        async {
            // Work that ignores even the force signal is left behind a little after it.
            tokio::time::timeout(DRAIN_DEADLINE + Duration::from_secs(2), work).await
        },
        trigger.drain(DRAIN_DEADLINE)
    );
    if outcome == Outcome::Forced {
        tracing::warn!(
            "not everything was finished within {} s",
            DRAIN_DEADLINE.as_secs()
        );
    }
    done.unwrap_or(Ok(()))
}

fn shown<C: Serialize>(config: &C, secrets: Secrets) -> Result<String, String> {
    let mut value = serde_json::to_value(config).map_err(|e| e.to_string())?;
    for secret in secrets {
        if let Some(field) = value.get_mut(*secret).filter(|v| !v.is_null()) {
            *field = "<not shown>".into();
        }
    }
    serde_saphyr::to_string(&value)
        .map(|t| t.trim_end().to_owned())
        .map_err(|e| e.to_string())
}

/// One line for a mistake in the arguments.
fn usage(binary: &str, error: &clap::Error) -> String {
    let text = error.to_string();
    // Below the message clap shows the usage, which `--help` shows better.
    let message = text.split("\nUsage:").next().unwrap_or(&text);
    let message = message.split("\nFor more information").next().unwrap_or(message);
    let words: Vec<&str> = message.split_whitespace().collect();
    let line = words.join(" ");
    format!("{}; see {binary} --help", line.trim_start_matches("error: "))
}

fn fail(binary: &str, error: &impl Display, code: u8) -> u8 {
    let text = error.to_string();
    let line: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    eprintln!("{binary}: {}", line.join(" "));
    code
}
