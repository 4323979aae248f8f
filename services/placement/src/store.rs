//! What outlives the process: tables with their epochs, and the hosts that own their slots.
//!
//! Written before anybody is told, so that whatever a node holds, the next process knows too. A
//! change costs in proportion to the slots that moved.

use sqlx::{Any, Row, Transaction, any::AnyRow, migrate::Migrator};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};
use weft_placement_protocol::{
    HostInfo, Placement, Saved, SavedHost, SavedTable, Settled, SlotCount, Table, TypeKey,
};
use weft_store::{Database, DatabaseUrl, StoreError};

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// Slots of one row.
const CHUNK: usize = 64;
const SLOT_BYTES: usize = 12;

/// Why the state can not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row that this service can not have written.
    #[error("database {database}: {what}; restore it from a backup")]
    Damaged {
        /// The file, or the server without its password.
        database: String,
        /// Which row, and what is wrong with it.
        what: String,
    },
}

/// Where the database is.
#[derive(Debug, Clone)]
pub enum DatabasePlace {
    /// A SQLite file.
    File(PathBuf),
    /// A database of a PostgreSQL server.
    Server(DatabaseUrl),
}

impl From<PathBuf> for DatabasePlace {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl std::fmt::Display for DatabasePlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Server(url) => url.fmt(f),
        }
    }
}

/// The database of one placement service.
#[derive(Debug)]
pub(crate) struct State {
    store: Database,
    /// Up to which version each table's slots are in the database.
    written: HashMap<TypeKey, u64>,
}

/// What was in the database.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Names this database: versions mean nothing under another one.
    pub epoch: String,
    /// Slot epochs of new types begin above this.
    pub epoch_base: u64,
    pub saved: Saved,
}

impl State {
    /// Opens it; on a server, when nobody else writes to the database there.
    pub async fn open(
        place: &DatabasePlace,
        waiting: impl FnMut(&str),
    ) -> Result<(Self, Loaded), StateError> {
        let store = match place {
            DatabasePlace::File(path) => Database::file(path, &SQLITE).await?,
            DatabasePlace::Server(url) => {
                let holder = weft_store::this_process("placement");
                Database::owned(url, &POSTGRES, &holder, waiting).await?
            }
        };
        let mut state = Self {
            store,
            written: HashMap::new(),
        };
        let loaded = state.load().await?;
        Ok((state, loaded))
    }

    fn damaged(&self, what: String) -> StateError {
        StateError::Damaged {
            database: self.store.to_string(),
            what,
        }
    }

    async fn load(&mut self) -> Result<Loaded, StateError> {
        // A database that was lost is made anew later than the one before, so its slot epochs start
        // above those that were given out: 65,536 per second of life are not used up.
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let base = i64::try_from(seconds << 16).unwrap_or(0);
        let sql = |e: sqlx::Error| StateError::from(self.store.error(&e));
        sqlx::query("INSERT INTO service (id, epoch, epoch_base) VALUES (1, $1, $2) ON CONFLICT DO NOTHING")
            .bind(uuid::Uuid::new_v4().to_string())
            .bind(base)
            .execute(self.store.pool())
            .await
            .map_err(sql)?;
        let service = sqlx::query("SELECT epoch, epoch_base FROM service WHERE id = 1")
            .fetch_one(self.store.pool())
            .await
            .map_err(sql)?;
        let hosts = sqlx::query("SELECT * FROM hosts")
            .fetch_all(self.store.pool())
            .await
            .map_err(sql)?;
        let types = sqlx::query("SELECT * FROM types")
            .fetch_all(self.store.pool())
            .await
            .map_err(sql)?;
        let chunks = sqlx::query("SELECT * FROM slots ORDER BY namespace, actor_type, chunk")
            .fetch_all(self.store.pool())
            .await
            .map_err(sql)?;

        let mut owners: BTreeMap<TypeKey, Vec<(u32, u64)>> = BTreeMap::new();
        for row in &chunks {
            let key = self.key(row)?;
            let chunk: i64 = self.get(row, "chunk")?;
            let bytes: Vec<u8> = self.get(row, "owners")?;
            let held = owners.entry(key.clone()).or_default();
            if usize::try_from(chunk) != Ok(held.len() / CHUNK) || !bytes.len().is_multiple_of(SLOT_BYTES) {
                return Err(self.damaged(format!("slots of {key}: row {chunk} does not fit")));
            }
            held.extend(bytes.chunks_exact(SLOT_BYTES).map(decode));
        }
        let mut saved = Saved::default();
        for row in &types {
            let key = self.key(row)?;
            let slots = u32::try_from(self.get::<i64>(row, "slots")?).unwrap_or(0);
            let slots = SlotCount::new(slots).map_err(|e| self.damaged(format!("type {key}: {e}")))?;
            let table = SavedTable {
                slots,
                version: self.number(row, "version")?,
                floor: self.number(row, "floor_epoch")?,
                owners: owners.remove(&key).unwrap_or_default(),
                key,
            };
            if !table.owners.is_empty() && table.owners.len() != slots.len() {
                let n = table.owners.len();
                return Err(self.damaged(format!("type {} has {n} slots instead of {slots}", table.key)));
            }
            self.written.insert(table.key.clone(), table.version);
            saved.tables.push(table);
        }
        for row in &hosts {
            let text = |name| self.get::<String>(row, name);
            let small =
                |name| Ok::<_, StateError>(u32::try_from(self.number(row, name)?).unwrap_or(u32::MAX));
            saved.hosts.push(SavedHost {
                number: small("number")?,
                info: HostInfo {
                    id: text("id")?.into(),
                    namespace: text("namespace")?.into(),
                    app_id: text("app_id")?.into(),
                    node: text("node")?.into(),
                    capacity: small("capacity")?,
                },
                actor_types: text("actor_types")?.lines().map(str::to_owned).collect(),
            });
        }
        let (epoch, epoch_base) = (self.get(&service, "epoch")?, self.number(&service, "epoch_base")?);
        Ok(Loaded {
            epoch,
            epoch_base,
            saved,
        })
    }

    fn get<'r, T>(&self, row: &'r AnyRow, column: &'static str) -> Result<T, StateError>
    where
        T: sqlx::Decode<'r, Any> + sqlx::Type<Any>,
    {
        row.try_get(column)
            .map_err(|e| self.damaged(format!("column {column}: {e}")))
    }

    fn number(&self, row: &AnyRow, column: &'static str) -> Result<u64, StateError> {
        let n: i64 = self.get(row, column)?;
        u64::try_from(n).map_err(|_| self.damaged(format!("column {column}: {n} is below zero")))
    }

    fn key(&self, row: &AnyRow) -> Result<TypeKey, StateError> {
        Ok(TypeKey::new(
            &self.get::<String>(row, "namespace")?,
            &self.get::<String>(row, "actor_type")?,
        ))
    }

    /// Writes what `changed` names, all of it or nothing.
    pub async fn save(&mut self, placement: &Placement, changed: &Settled) -> Result<(), StoreError> {
        let mut tx = self.store.begin_write().await?;
        let done = write(&mut tx, placement, changed, &self.written).await;
        match done {
            Ok(()) => tx.commit().await,
            Err(e) => Err(e),
        }
        .map_err(|e| self.store.error(&e))?;
        for key in &changed.types {
            if let Some(table) = placement.tables().get(key) {
                self.written.insert(key.clone(), table.version());
            }
        }
        Ok(())
    }

    /// Waits until another process writes to the database, or may.
    pub fn lost(&self) -> impl Future<Output = StoreError> + Send + use<> {
        // Nodes' leases are renewed here: whoever is not sure to be alone must stop doing that.
        self.store.lost(true)
    }

    pub async fn close(self) {
        self.store.close().await;
    }
}

type Tx = Transaction<'static, Any>;

/// Databases have signed integers; versions and epochs never get near the end of either.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

async fn write(
    tx: &mut Tx,
    placement: &Placement,
    changed: &Settled,
    written: &HashMap<TypeKey, u64>,
) -> Result<(), sqlx::Error> {
    for id in &changed.hosts {
        let Some(host) = placement.saved_host(id) else {
            sqlx::query("DELETE FROM hosts WHERE id = $1")
                .bind(&**id)
                .execute(&mut **tx)
                .await?;
            continue;
        };
        sqlx::query(
            "INSERT INTO hosts (id, number, namespace, app_id, node, capacity, actor_types) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO UPDATE SET number = excluded.number, \
             namespace = excluded.namespace, app_id = excluded.app_id, node = excluded.node, \
             capacity = excluded.capacity, actor_types = excluded.actor_types",
        )
        .bind(&*host.info.id)
        .bind(i64::from(host.number))
        .bind(&*host.info.namespace)
        .bind(&*host.info.app_id)
        .bind(&*host.info.node)
        .bind(i64::from(host.info.capacity))
        .bind(host.actor_types.join("\n"))
        .execute(&mut **tx)
        .await?;
    }
    for key in &changed.types {
        if let Some(table) = placement.tables().get(key) {
            write_table(tx, key, table, written.get(key).copied().unwrap_or(0)).await?;
        }
    }
    Ok(())
}

async fn write_table(tx: &mut Tx, key: &TypeKey, table: &Table, written: u64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO types (namespace, actor_type, slots, version, floor_epoch) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (namespace, actor_type) \
         DO UPDATE SET version = excluded.version, floor_epoch = excluded.floor_epoch",
    )
    .bind(&*key.namespace)
    .bind(&*key.actor_type)
    .bind(i64::from(table.slots().get()))
    .bind(signed(table.version()))
    .bind(signed(table.floor()))
    .execute(&mut **tx)
    .await?;
    if table.is_empty() {
        sqlx::query("DELETE FROM slots WHERE namespace = $1 AND actor_type = $2")
            .bind(&*key.namespace)
            .bind(&*key.actor_type)
            .execute(&mut **tx)
            .await?;
        return Ok(());
    }
    let slots: Vec<_> = table.slots_raw().collect();
    for (chunk, slots) in slots.chunks(CHUNK).enumerate() {
        if slots.iter().all(|(_, _, changed)| *changed <= written) {
            continue;
        }
        let bytes: Vec<u8> = slots
            .iter()
            .flat_map(|(owner, epoch, _)| encode(*owner, *epoch))
            .collect();
        sqlx::query(
            "INSERT INTO slots (namespace, actor_type, chunk, owners) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (namespace, actor_type, chunk) DO UPDATE SET owners = excluded.owners",
        )
        .bind(&*key.namespace)
        .bind(&*key.actor_type)
        .bind(chunk as i64)
        .bind(bytes)
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

fn encode(owner: u32, epoch: u64) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..4].copy_from_slice(&owner.to_le_bytes());
    bytes[4..].copy_from_slice(&epoch.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> (u32, u64) {
    let (mut owner, mut epoch) = ([0; 4], [0; 8]);
    owner.copy_from_slice(&bytes[..4]);
    epoch.copy_from_slice(&bytes[4..SLOT_BYTES]);
    (u32::from_le_bytes(owner), u64::from_le_bytes(epoch))
}
