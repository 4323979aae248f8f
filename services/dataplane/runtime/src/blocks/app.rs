//! What one app has: its components as its calls find them.

use super::prefix::KeyPrefix;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};
use weft_components_api::{
    Component, ComponentSpec, ConfigurationStore, InputBinding, LockStore, Metadata, OutputBinding, Owner,
    PubSub, PubSubFeature, SecretStore, StateStore,
};
use weft_flows::Party;
use weft_model::NumericIdentity;

/// A state store of one app.
pub(crate) struct State {
    pub name: String,
    pub store: Arc<dyn StateStore>,
    pub prefix: KeyPrefix,
    pub party: Arc<Party>,
}

/// A broker of one app.
pub(crate) struct Broker {
    pub name: String,
    pub broker: Arc<dyn PubSub>,
    /// Under which name the app subscribes.
    pub group: String,
    /// What its topics begin with at the broker, where they are its namespace's own.
    pub namespaced: Option<String>,
    pub scopes: TopicScopes,
    pub party: Arc<Party>,
}

/// A binding that events come from.
pub(crate) struct Input {
    pub name: String,
    /// The app's path.
    pub route: String,
    /// The manifest says that the app takes the events: it is not asked.
    pub explicit: bool,
    pub binding: Arc<dyn InputBinding>,
    pub party: Arc<Party>,
}

/// A binding that can be called.
pub(crate) struct Output {
    pub name: String,
    pub binding: Arc<dyn OutputBinding>,
    pub party: Arc<Party>,
}

/// A secret store of one app.
pub(crate) struct Secrets {
    pub name: String,
    pub store: Arc<dyn SecretStore>,
    pub party: Arc<Party>,
}

/// A configuration store of one app.
pub(crate) struct Configuration {
    pub name: String,
    pub store: Arc<dyn ConfigurationStore>,
    pub party: Arc<Party>,
}

/// A lock store of one app.
pub(crate) struct Lock {
    pub name: String,
    pub store: Arc<dyn LockStore>,
    pub prefix: KeyPrefix,
    pub party: Arc<Party>,
}

/// A component as the metadata API tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub name: String,
    pub kind: String,
    pub version: String,
    pub capabilities: Vec<&'static str>,
}

/// See the module. Replaced as a whole when any of it changes.
#[derive(Default)]
pub(crate) struct AppBlocks {
    pub states: HashMap<String, Arc<State>>,
    pub brokers: HashMap<String, Arc<Broker>>,
    pub outputs: HashMap<String, Arc<Output>>,
    pub inputs: BTreeMap<String, Arc<Input>>,
    pub secrets: HashMap<String, Arc<Secrets>>,
    pub configurations: BTreeMap<String, Arc<Configuration>>,
    pub locks: HashMap<String, Arc<Lock>>,
    pub listed: Vec<Listed>,
}

/// A component in flows.
fn party(spec: &ComponentSpec) -> Arc<Party> {
    Arc::new(Party {
        namespace: spec.namespace.as_str().into(),
        workload: spec.name.as_str().into(),
        app_id: Arc::default(),
        identity: NumericIdentity::UNKNOWN,
        spiffe_id: Arc::default(),
        address: None::<IpAddr>,
        node: Arc::default(),
    })
}

impl AppBlocks {
    /// Takes a component that was opened for `owner`; says what is wrong with what its manifest asks
    /// of the runtime.
    pub fn add(&mut self, spec: &ComponentSpec, component: &Component, owner: &Owner) -> Result<(), String> {
        let metadata = spec.metadata_for(owner).map_err(|e| e.to_string())?;
        let name = spec.name.clone();
        let party = party(spec);
        match component {
            Component::State(store) => {
                let strategy = metadata.get("keyPrefix").unwrap_or_default();
                let prefix = KeyPrefix::new(strategy, &name, owner)?;
                let state = State {
                    name: name.clone(),
                    store: store.clone(),
                    prefix,
                    party,
                };
                self.states.insert(name, Arc::new(state));
            }
            Component::Secrets(store) => {
                let store = store.clone();
                let secrets = Secrets {
                    name: name.clone(),
                    store,
                    party,
                };
                self.secrets.insert(name, Arc::new(secrets));
            }
            Component::Configuration(store) => {
                let store = store.clone();
                let configuration = Configuration {
                    name: name.clone(),
                    store,
                    party,
                };
                self.configurations.insert(name, Arc::new(configuration));
            }
            Component::Lock(store) => {
                let strategy = metadata.get("keyPrefix").unwrap_or_default();
                let lock = Lock {
                    name: name.clone(),
                    store: store.clone(),
                    prefix: KeyPrefix::of_locks(strategy, &name, owner)?,
                    party,
                };
                self.locks.insert(name, Arc::new(lock));
            }
            Component::PubSub(broker) => {
                let group = metadata.get("consumerID").map(str::trim);
                let group = group.filter(|id| !id.is_empty()).unwrap_or(&owner.app_id);
                let broker = Broker {
                    name: name.clone(),
                    broker: broker.clone(),
                    group: group.to_owned(),
                    namespaced: spec.is_namespaced().then(|| owner.namespace.clone()),
                    scopes: TopicScopes::new(&metadata, &owner.app_id),
                    party,
                };
                self.brokers.insert(name, Arc::new(broker));
            }
            Component::Binding { input, output } => {
                let directions = metadata.get("direction").unwrap_or_default();
                let says = |direction: &str| {
                    directions
                        .split(',')
                        .any(|d| d.trim().eq_ignore_ascii_case(direction))
                };
                // A direction that is named leaves out the other.
                let open = |direction: &str| directions.trim().is_empty() || says(direction);
                if let Some(binding) = input.clone().filter(|_| open("input")) {
                    let route = metadata.get("route").filter(|r| !r.is_empty()).unwrap_or(&name);
                    let input = Input {
                        name: name.clone(),
                        route: format!("/{}", route.trim_start_matches('/')),
                        explicit: says("input"),
                        binding,
                        party: party.clone(),
                    };
                    self.inputs.insert(name.clone(), Arc::new(input));
                }
                if let Some(binding) = output.clone().filter(|_| open("output")) {
                    let output = Output {
                        name: name.clone(),
                        binding,
                        party,
                    };
                    self.outputs.insert(name, Arc::new(output));
                }
            }
        }
        self.listed.push(Listed {
            name: spec.name.clone(),
            kind: spec.kind.clone(),
            version: spec.version.clone(),
            capabilities: component.capabilities(),
        });
        Ok(())
    }
}

impl Broker {
    /// The topic's name at the broker.
    pub fn topic(&self, topic: &str) -> String {
        match &self.namespaced {
            Some(namespace) => format!("{namespace}{topic}"),
            None => topic.to_owned(),
        }
    }

    /// Whether the broker ends messages itself.
    pub fn keeps_ttl(&self) -> bool {
        self.broker.features().contains(&PubSubFeature::MessageTtl)
    }
}

/// Which topics an app may publish to and subscribe to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TopicScopes {
    publishing: Vec<String>,
    subscriptions: Vec<String>,
    allowed: Vec<String>,
    protected: Vec<String>,
}

impl TopicScopes {
    fn new(metadata: &Metadata, app_id: &str) -> Self {
        let text = |key: &str| metadata.get(key).unwrap_or_default().replace(' ', "");
        let topics = |list: &str| -> Vec<String> {
            let topics = list.split(',').filter(|topic| !topic.is_empty());
            topics.map(str::to_owned).collect()
        };
        // `app1=topic1,topic2;app2=` gives app2 none, which is not the same as saying nothing of it.
        let scoped = |key: &str| -> Vec<String> {
            let text = text(key);
            let own = text.split(';').filter_map(|part| part.split_once('='));
            let own = own.filter(|(app, _)| *app == app_id);
            own.flat_map(|(_, list)| list.split(',').map(str::to_owned))
                .collect()
        };
        Self {
            publishing: scoped("publishingScopes"),
            subscriptions: scoped("subscriptionScopes"),
            allowed: topics(&text("allowedTopics")),
            protected: topics(&text("protectedTopics")),
        }
    }

    /// Whether the app may publish to a topic.
    pub fn may_publish(&self, topic: &str) -> bool {
        self.allows(topic, &self.publishing)
    }

    /// Whether the app may subscribe to a topic.
    pub fn may_subscribe(&self, topic: &str) -> bool {
        self.allows(topic, &self.subscriptions)
    }

    fn allows(&self, topic: &str, scoped: &[String]) -> bool {
        let among = |list: &[String]| list.iter().any(|known| known == topic);
        if !self.allowed.is_empty() && !among(&self.allowed) {
            return false;
        }
        (scoped.is_empty() && !among(&self.protected)) || among(scoped)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn scopes(pairs: &[(&str, &str)], app_id: &str) -> TopicScopes {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        TopicScopes::new(&Metadata::new(pairs.collect()).unwrap(), app_id)
    }

    #[test]
    fn topics_are_scoped_as_dapr_scopes_them() {
        let open = scopes(&[], "cart");
        assert!(open.may_publish("any") && open.may_subscribe("any"));
        let given = [
            ("publishingScopes", "cart=a,b; bill="),
            ("subscriptionScopes", "bill=a"),
            ("allowedTopics", "a, b, c"),
            ("protectedTopics", "c"),
        ];
        let cart = scopes(&given, "cart");
        assert!(cart.may_publish("a") && cart.may_publish("b"));
        assert!(!cart.may_publish("c") && !cart.may_publish("d"));
        // Nothing is said of cart's subscriptions: all that is allowed and not protected.
        assert!(cart.may_subscribe("a") && !cart.may_subscribe("c") && !cart.may_subscribe("d"));
        let bill = scopes(&given, "bill");
        assert!(!bill.may_publish("a"), "it is given none");
        assert!(bill.may_subscribe("a") && !bill.may_subscribe("b"));
    }
}
