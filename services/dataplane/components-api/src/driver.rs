//! How a driver is found, and how it opens a component for an app.

use crate::{
    Block, ComponentSpec, ConfigurationStore, InputBinding, LockStore, Metadata, Net, OutputBinding, Owner,
    PubSub, Schema, SecretStore, SpecError, StateStore,
};
use futures::future::BoxFuture;
use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

/// Why a component is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// Nobody has a driver for it.
    #[error("no driver for {kind}/{version}; there are {known}")]
    NoDriver {
        /// `spec.type`.
        kind: String,
        /// `spec.version`.
        version: String,
        /// What there is.
        known: String,
    },
    /// Its manifest is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// It could not be opened.
    #[error("{0}")]
    Failed(String),
    /// It was not opened in time.
    #[error("not opened within {0:?}")]
    Timeout(std::time::Duration),
}

/// What a driver needs to know to open a component.
#[derive(Debug, Clone)]
pub struct Instance {
    /// The component's name.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// Checked against the driver's [`Schema`], placeholders filled in.
    pub metadata: Metadata,
    /// What the app has of its own.
    pub home: Home,
}

/// What an app has of its own, and no other has.
#[derive(Clone)]
pub struct Home {
    /// A folder, for drivers that keep files; it may not be there yet.
    pub files: PathBuf,
    /// The environment of its runtime, as annotation `dapr.io/env` has it.
    pub environment: Arc<BTreeMap<String, String>>,
    /// How it reaches the network.
    pub net: Net,
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.environment.keys().collect();
        f.debug_struct("Home")
            .field("files", &self.files)
            .field("environment", &names)
            .finish_non_exhaustive()
    }
}

/// A component, opened for one app.
#[derive(Clone)]
pub enum Component {
    /// A state store.
    State(Arc<dyn StateStore>),
    /// A broker.
    PubSub(Arc<dyn PubSub>),
    /// A binding, in one direction or both.
    Binding {
        /// Events come from it.
        input: Option<Arc<dyn InputBinding>>,
        /// It can be called.
        output: Option<Arc<dyn OutputBinding>>,
    },
    /// A secret store.
    Secrets(Arc<dyn SecretStore>),
    /// A configuration store.
    Configuration(Arc<dyn ConfigurationStore>),
    /// A lock store.
    Lock(Arc<dyn LockStore>),
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::State(_) => "State",
            Self::PubSub(_) => "PubSub",
            Self::Binding { .. } => "Binding",
            Self::Secrets(_) => "Secrets",
            Self::Configuration(_) => "Configuration",
            Self::Lock(_) => "Lock",
        })
    }
}

impl Component {
    /// What it can do, as Dapr's metadata API names it.
    pub fn capabilities(&self) -> Vec<&'static str> {
        match self {
            Self::State(store) => store.capabilities().iter().map(|c| c.as_str()).collect(),
            Self::PubSub(broker) => broker.features().iter().map(|f| f.as_str()).collect(),
            Self::Secrets(store) => store.features().iter().map(|f| f.as_str()).collect(),
            Self::Configuration(_) | Self::Lock(_) => Vec::new(),
            Self::Binding { input, output } => {
                let directions = [
                    (input.is_some(), "INPUT_BINDING"),
                    (output.is_some(), "OUTPUT_BINDING"),
                ];
                let there = directions.into_iter().filter(|(there, _)| *there);
                there.map(|(_, name)| name).collect()
            }
        }
    }
}

/// Opens components of one type.
pub trait Driver: Send + Sync + 'static {
    /// Its building block.
    fn block(&self) -> Block;
    /// `spec.type`.
    fn kind(&self) -> &'static str;
    /// `spec.version`s that it opens. "v1" stands for an empty one and for "v0" too, as in Dapr.
    fn versions(&self) -> &'static [&'static str] {
        &["v1"]
    }
    /// The metadata that it knows.
    fn schema(&self) -> &'static Schema;
    /// Opens a component for an app.
    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>>;
}

/// All drivers of an agent.
#[derive(Clone, Default)]
pub struct Drivers(Arc<[Arc<dyn Driver>]>);

impl fmt::Debug for Drivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = self.0.iter().map(|driver| driver.kind());
        f.debug_list().entries(kinds).finish()
    }
}

impl Drivers {
    /// Of these.
    pub fn new(drivers: Vec<Arc<dyn Driver>>) -> Self {
        Self(drivers.into())
    }

    /// The driver of a component.
    pub fn find(&self, kind: &str, version: &str) -> Result<&Arc<dyn Driver>, InitError> {
        let wanted = match version {
            "" | "v0" => "v1",
            other => other,
        };
        let fits = |driver: &&Arc<dyn Driver>| {
            driver.kind().eq_ignore_ascii_case(kind)
                && driver.versions().iter().any(|v| v.eq_ignore_ascii_case(wanted))
        };
        self.0.iter().find(fits).ok_or_else(|| {
            let known = self.0.iter().flat_map(|driver| {
                let versions = driver.versions().iter();
                versions.map(move |version| format!("{}/{version}", driver.kind()))
            });
            let known: Vec<String> = known.collect();
            InitError::NoDriver {
                kind: kind.to_owned(),
                version: version.to_owned(),
                known: known.join(", "),
            }
        })
    }

    /// Opens a component for an app, within the time that it may take.
    pub async fn open(
        &self,
        spec: &ComponentSpec,
        owner: &Owner,
        home: Home,
    ) -> Result<Component, InitError> {
        let driver = self.find(&spec.kind, &spec.version)?;
        spec.metadata
            .check(driver.block(), driver.schema())
            .map_err(SpecError::from)?;
        let instance = Instance {
            name: spec.name.clone(),
            owner: owner.clone(),
            metadata: spec.metadata_for(owner)?,
            home,
        };
        driver.open(instance).await
    }
}
