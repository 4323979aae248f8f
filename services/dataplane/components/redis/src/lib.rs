//! Components on Redis: `state.redis`, `pubsub.redis`, `configuration.redis`, `lock.redis`.
//!
//! What is kept there has Dapr's form, so that both can be at one server. Owns the connections: one for
//! an app's commands, and one more for each subscription, all made as the app ([`Net`]). A server that
//! goes away is an error of the calls meanwhile; when it is back they go on, and subscriptions too.
//!
//! [`Net`]: weft_components_api::Net

mod client;
mod configuration;
mod lock;
mod pubsub;
mod settings;
mod state;

pub use configuration::RedisConfiguration;
pub use lock::RedisLock;
pub use pubsub::RedisPubSub;
pub use state::RedisState;
