//! Connections to one server, made when they are needed and made anew when they are lost.

use crate::settings::Settings;
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, RedisError, Value,
    aio::{MultiplexedConnection, PubSub},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout},
};
use weft_components_api::{InitError, Instance, Net, SpecError};

/// The pause before a lost connection of a subscription is made anew doubles from the first to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("error connecting to redis at {at}: {problem}")]
    Connect { at: String, problem: String },
    #[error("redis: {0}")]
    Redis(#[from] RedisError),
}

impl Error {
    /// The code of an error that the server answered.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Redis(e) => e.code(),
            Self::Connect { .. } => None,
        }
    }
}

/// One app at one server. Clones share.
#[derive(Clone)]
pub(crate) struct Client(Arc<Inner>);

struct Inner {
    settings: Settings,
    net: Net,
    live: Mutex<Option<Live>>,
    /// One at a time connects.
    connecting: Semaphore,
}

#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    /// Set when nothing can come by it any more.
    over: Arc<AtomicBool>,
}

impl Client {
    /// By an instance's metadata; the server has answered.
    pub async fn open(instance: &Instance) -> Result<Self, InitError> {
        let settings = Settings::read(&instance.metadata).map_err(SpecError::from)?;
        let client = Self(Arc::new(Inner {
            settings,
            net: instance.home.net.clone(),
            live: Mutex::default(),
            connecting: Semaphore::new(1),
        }));
        let ping = client.run(&redis::cmd("PING")).await;
        ping.map_err(|e| InitError::Failed(e.to_string()))?;
        Ok(client)
    }

    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    async fn stream(&self) -> Result<TcpStream, Error> {
        let Settings {
            host,
            port,
            dial_within,
            ..
        } = &self.0.settings;
        let failed = |problem: String| Error::Connect {
            at: format!("{host}:{port}"),
            problem,
        };
        let dialed = timeout(*dial_within, self.0.net.connect(host, *port)).await;
        let stream = dialed.map_err(|_| failed(format!("no connection within {dial_within:?}")))?;
        let stream = stream.map_err(|e| failed(e.to_string()))?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// `answer_within`: for how long an answer is waited for; for who waits in the server, `None`.
    async fn connect(&self, answer_within: Option<Duration>) -> Result<Live, Error> {
        let Settings {
            host,
            port,
            info,
            dial_within,
            ..
        } = &self.0.settings;
        let stream = self.stream().await?;
        let config = AsyncConnectionConfig::new().set_response_timeout(answer_within);
        let made = timeout(
            *dial_within,
            MultiplexedConnection::new_with_config(info, stream, config),
        )
        .await;
        let failed = |problem: String| Error::Connect {
            at: format!("{host}:{port}"),
            problem,
        };
        let made = made.map_err(|_| failed(format!("no answer within {dial_within:?}")))?;
        let (connection, driver) = made.map_err(|e| failed(e.to_string()))?;
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        // Ends with its connection, or when nobody has the other end.
        tokio::spawn(async move {
            driver.await;
            told.store(true, Ordering::Release);
        });
        Ok(Live { connection, over })
    }

    fn known(&self) -> Option<Live> {
        let live = self.0.live.lock();
        live.clone().filter(|live| !live.over.load(Ordering::Acquire))
    }

    async fn live(&self) -> Result<Live, Error> {
        if let Some(live) = self.known() {
            return Ok(live);
        }
        let _turn = self.0.connecting.acquire().await;
        if let Some(live) = self.known() {
            return Ok(live);
        }
        let live = self.connect(Some(self.0.settings.answer_within)).await?;
        *self.0.live.lock() = Some(live.clone());
        Ok(live)
    }

    fn look<T>(&self, live: &Live, done: Result<T, RedisError>) -> Result<T, Error> {
        // A connection on which an answer is overdue may answer the next command with it.
        if done
            .as_ref()
            .is_err_and(|e| e.is_io_error() || e.is_unrecoverable_error())
        {
            live.over.store(true, Ordering::Release);
        }
        done.map_err(Error::from)
    }

    /// One command.
    pub async fn run(&self, command: &Cmd) -> Result<Value, Error> {
        let mut live = self.live().await?;
        let done = live.connection.send_packed_command(command).await;
        let done = done.and_then(Value::extract_error);
        self.look(&live, done)
    }

    /// Several at once; each with its own answer, which may be an error of the server's.
    pub async fn run_all(&self, commands: &Pipeline) -> Result<Vec<Value>, Error> {
        let mut live = self.live().await?;
        let count = commands.len();
        let done = live.connection.send_packed_commands(commands, 0, count).await;
        self.look(&live, done)
    }

    /// A connection of its own, on which the server may take its time.
    pub async fn own(&self) -> Result<MultiplexedConnection, Error> {
        Ok(self.connect(None).await?.connection)
    }

    /// A connection of its own that messages come by.
    pub async fn listen(&self) -> Result<PubSub, Error> {
        let stream = self.stream().await?;
        let within = self.0.settings.dial_within;
        let made = timeout(within, PubSub::new(&self.0.settings.info, stream)).await;
        let made = made.map_err(|_| Error::Connect {
            at: format!("{}:{}", self.0.settings.host, self.0.settings.port),
            problem: format!("no answer within {within:?}"),
        })?;
        Ok(made?)
    }
}

/// The pauses between attempts.
pub(crate) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    /// Waits after an attempt that began then; one that lasted was a good one.
    pub async fn after(&mut self, began: Instant) {
        if began.elapsed() > LONGEST_PAUSE {
            *self = Self::default();
        }
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}
