//! What must outlive a restart: identities, workloads, and the last good content of each file.

use crate::world::{Name, ObjectKey};
use prost::Message;
use sqlx::{Row, any::AnyRow, migrate::Migrator};
use std::{collections::BTreeMap, net::IpAddr, path::Path};
use weft_model::{Labels, NumericIdentity};
use weft_proto::weft::policy::v1 as pb;
use weft_resources::Kind;
use weft_store::{Database, DatabaseUrl, StoreError};

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// One change. Several are made together or not at all.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    Identity {
        number: NumericIdentity,
        labels: String,
        released_at: Option<u64>,
    },
    RemoveIdentity {
        number: NumericIdentity,
    },
    Workload {
        id: String,
        node: String,
        message: Box<pb::Workload>,
    },
    RemoveWorkload {
        id: String,
    },
    GoodFile {
        path: String,
        content: Vec<u8>,
    },
    RemoveGoodFile {
        path: String,
    },
    Node {
        name: String,
        message: Box<pb::Node>,
    },
    RemoveNode {
        name: String,
    },
    ServiceAddress {
        address: IpAddr,
        namespace: String,
        name: String,
    },
    RemoveServiceAddress {
        address: IpAddr,
    },
    Object {
        key: ObjectKey,
        created: u64,
        generation: u64,
        digest: u64,
    },
    RemoveObject {
        key: ObjectKey,
    },
    Applied {
        key: ObjectKey,
        json: String,
    },
    RemoveApplied {
        key: ObjectKey,
    },
}

impl Write {
    pub(crate) fn identity(number: NumericIdentity, labels: &Labels, released_at: Option<u64>) -> Self {
        // A map of texts always has a JSON form; keys are in order, so equal sets give equal texts.
        let labels = serde_json::to_string(labels).unwrap_or_default();
        Self::Identity {
            number,
            labels,
            released_at,
        }
    }
}

/// What was found at the start.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub identities: Vec<(NumericIdentity, Labels, Option<u64>)>,
    pub workloads: Vec<pb::Workload>,
    pub good_files: BTreeMap<String, Vec<u8>>,
    pub nodes: Vec<pb::Node>,
    pub service_addresses: Vec<(Name, IpAddr)>,
    /// Objects with when they were seen first, their generation and a digest of their content.
    pub objects: Vec<(ObjectKey, u64, u64, u64)>,
    /// What was applied, as JSON.
    pub applied: Vec<(ObjectKey, String)>,
}

/// The key in a row's first three columns; `None` for a kind that only a later version knew.
fn key_of(row: &AnyRow) -> Result<Option<ObjectKey>, sqlx::Error> {
    let kind: String = row.try_get(0)?;
    let Some(kind) = Kind::ALL.into_iter().find(|k| k.name() == kind) else {
        return Ok(None);
    };
    Ok(Some(ObjectKey {
        kind,
        namespace: row.try_get(1)?,
        name: row.try_get(2)?,
    }))
}

/// The database.
#[derive(Debug, Clone)]
pub(crate) struct State(Database);

impl State {
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self(Database::file(path, &SQLITE).await?))
    }

    /// Connects to a server, when nobody else writes to the database there.
    pub(crate) async fn connect(url: &DatabaseUrl, waiting: impl FnMut(&str)) -> Result<Self, StoreError> {
        let holder = weft_store::this_process("policy");
        Ok(Self(Database::owned(url, &POSTGRES, &holder, waiting).await?))
    }

    /// Waits until another process writes to the database.
    pub(crate) fn lost(&self) -> impl Future<Output = StoreError> + Send + use<> {
        // Nodes go on with what they have, and writes are refused: without an answer it is better to stay.
        self.0.lost(false)
    }

    pub(crate) async fn load(&self) -> Result<Stored, StoreError> {
        self.try_load().await.map_err(|e| self.0.error(&e))
    }

    async fn try_load(&self) -> Result<Stored, sqlx::Error> {
        let mut stored = Stored::default();
        let decode = |e: String| sqlx::Error::Decode(e.into());
        for row in sqlx::query("SELECT number, labels, released_at FROM identity")
            .fetch_all(self.0.pool())
            .await?
        {
            let number: i64 = row.try_get(0)?;
            let number =
                u32::try_from(number).map_err(|_| decode(format!("identity {number}: out of range")))?;
            let labels: String = row.try_get(1)?;
            let labels: Labels =
                serde_json::from_str(&labels).map_err(|e| decode(format!("identity {number}: {e}")))?;
            let released_at: Option<i64> = row.try_get(2)?;
            let released_at = released_at.and_then(|at| u64::try_from(at).ok());
            stored
                .identities
                .push((NumericIdentity(number), labels, released_at));
        }
        for row in sqlx::query("SELECT id, message FROM workload ORDER BY id")
            .fetch_all(self.0.pool())
            .await?
        {
            let id: String = row.try_get(0)?;
            let bytes: Vec<u8> = row.try_get(1)?;
            let message =
                pb::Workload::decode(bytes.as_slice()).map_err(|e| decode(format!("workload {id}: {e}")))?;
            stored.workloads.push(message);
        }
        for row in sqlx::query("SELECT path, content FROM good_file")
            .fetch_all(self.0.pool())
            .await?
        {
            stored.good_files.insert(row.try_get(0)?, row.try_get(1)?);
        }
        for row in sqlx::query("SELECT name, message FROM node ORDER BY name")
            .fetch_all(self.0.pool())
            .await?
        {
            let name: String = row.try_get(0)?;
            let bytes: Vec<u8> = row.try_get(1)?;
            let message =
                pb::Node::decode(bytes.as_slice()).map_err(|e| decode(format!("node {name}: {e}")))?;
            stored.nodes.push(message);
        }
        for row in sqlx::query("SELECT address, namespace, name FROM service_address ORDER BY address")
            .fetch_all(self.0.pool())
            .await?
        {
            let text: String = row.try_get(0)?;
            let address = text
                .parse()
                .map_err(|e| decode(format!("service address {text}: {e}")))?;
            stored
                .service_addresses
                .push(((row.try_get(1)?, row.try_get(2)?), address));
        }
        for row in sqlx::query("SELECT kind, namespace, name, created, generation, digest FROM object")
            .fetch_all(self.0.pool())
            .await?
        {
            let Some(key) = key_of(&row)? else { continue };
            let [created, generation, digest] = [3, 4, 5].map(|at| row.try_get::<i64, _>(at));
            stored.objects.push((
                key,
                created?.cast_unsigned(),
                generation?.cast_unsigned(),
                digest?.cast_unsigned(),
            ));
        }
        for row in
            sqlx::query("SELECT kind, namespace, name, content FROM applied ORDER BY kind, namespace, name")
                .fetch_all(self.0.pool())
                .await?
        {
            let Some(key) = key_of(&row)? else { continue };
            stored.applied.push((key, row.try_get(3)?));
        }
        Ok(stored)
    }

    pub(crate) async fn write(&self, writes: &[Write]) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        let mut transaction = self.0.begin_write().await?;
        for write in writes {
            let query = match write {
                Write::Identity { number, labels, released_at } => sqlx::query(
                    "INSERT INTO identity (number, labels, released_at) VALUES ($1, $2, $3)
                     ON CONFLICT (number) DO UPDATE SET labels = excluded.labels, released_at = excluded.released_at",
                )
                .bind(i64::from(number.0))
                .bind(labels)
                .bind(released_at.and_then(|at| i64::try_from(at).ok())),
                Write::RemoveIdentity { number } => {
                    sqlx::query("DELETE FROM identity WHERE number = $1").bind(i64::from(number.0))
                }
                Write::Workload { id, node, message } => sqlx::query(
                    "INSERT INTO workload (id, node, message) VALUES ($1, $2, $3)
                     ON CONFLICT (id) DO UPDATE SET node = excluded.node, message = excluded.message",
                )
                .bind(id)
                .bind(node)
                .bind(message.encode_to_vec()),
                Write::RemoveWorkload { id } => sqlx::query("DELETE FROM workload WHERE id = $1").bind(id),
                Write::GoodFile { path, content } => sqlx::query(
                    "INSERT INTO good_file (path, content) VALUES ($1, $2)
                     ON CONFLICT (path) DO UPDATE SET content = excluded.content",
                )
                .bind(path)
                .bind(content),
                Write::RemoveGoodFile { path } => sqlx::query("DELETE FROM good_file WHERE path = $1").bind(path),
                Write::Node { name, message } => sqlx::query(
                    "INSERT INTO node (name, message) VALUES ($1, $2)
                     ON CONFLICT (name) DO UPDATE SET message = excluded.message",
                )
                .bind(name)
                .bind(message.encode_to_vec()),
                Write::RemoveNode { name } => sqlx::query("DELETE FROM node WHERE name = $1").bind(name),
                Write::ServiceAddress { address, namespace, name } => sqlx::query(
                    "INSERT INTO service_address (address, namespace, name) VALUES ($1, $2, $3)
                     ON CONFLICT (address) DO UPDATE SET namespace = excluded.namespace, name = excluded.name",
                )
                .bind(address.to_string())
                .bind(namespace)
                .bind(name),
                Write::RemoveServiceAddress { address } => {
                    sqlx::query("DELETE FROM service_address WHERE address = $1").bind(address.to_string())
                }
                Write::Object { key, created, generation, digest } => sqlx::query(
                    "INSERT INTO object (kind, namespace, name, created, generation, digest) VALUES ($1, $2, $3, $4, $5, $6)
                     ON CONFLICT (kind, namespace, name) DO UPDATE SET
                     created = excluded.created, generation = excluded.generation, digest = excluded.digest",
                )
                .bind(key.kind.name())
                .bind(&key.namespace)
                .bind(&key.name)
                .bind(created.cast_signed())
                .bind(generation.cast_signed())
                .bind(digest.cast_signed()),
                Write::RemoveObject { key } => {
                    sqlx::query("DELETE FROM object WHERE kind = $1 AND namespace = $2 AND name = $3")
                        .bind(key.kind.name())
                        .bind(&key.namespace)
                        .bind(&key.name)
                }
                Write::Applied { key, json } => sqlx::query(
                    "INSERT INTO applied (kind, namespace, name, content) VALUES ($1, $2, $3, $4)
                     ON CONFLICT (kind, namespace, name) DO UPDATE SET content = excluded.content",
                )
                .bind(key.kind.name())
                .bind(&key.namespace)
                .bind(&key.name)
                .bind(json),
                Write::RemoveApplied { key } => {
                    sqlx::query("DELETE FROM applied WHERE kind = $1 AND namespace = $2 AND name = $3")
                        .bind(key.kind.name())
                        .bind(&key.namespace)
                        .bind(&key.name)
                }
            };
            query
                .execute(&mut *transaction)
                .await
                .map_err(|e| self.0.error(&e))?;
        }
        transaction.commit().await.map_err(|e| self.0.error(&e))
    }

    pub(crate) async fn close(self) {
        self.0.close().await;
    }
}
