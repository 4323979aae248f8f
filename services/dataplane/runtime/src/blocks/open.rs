//! Opening and closing one app's components as manifests come and go.

use super::{AppBlocks, Blocks, Slot};
use futures::future::join_all;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use weft_components_api::{Component, ComponentSpec, Home, InitError, Owner};

/// What could not be opened is tried again after this pause, which doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

struct Instance {
    spec: Arc<ComponentSpec>,
    /// With its secrets.
    resolved: Arc<ComponentSpec>,
    component: Option<Component>,
    /// It may be there another time.
    again: bool,
    /// Why it can not be used.
    problem: Option<String>,
}

/// Until the app is gone.
pub(super) async fn run(blocks: Blocks, slot: Arc<Slot>) {
    let mut wanted = slot.wanted.subscribe();
    let mut instances: BTreeMap<String, Instance> = BTreeMap::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let generation = *wanted.borrow_and_update();
        let opened = tokio::select! {
            opened = refresh(&blocks, &slot, &mut instances) => opened,
            () = slot.gone.cancelled() => return,
        };
        let opened = Arc::new(opened);
        slot.view.store(opened.clone());
        slot.watches.follow(&opened.configurations).await;
        slot.opened.send_replace(generation);
        let some_again = instances.values().any(|instance| instance.again);
        tokio::select! {
            changed = wanted.changed() => {
                pause = FIRST_PAUSE;
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(pause), if some_again => pause = (pause * 2).min(LONGEST_PAUSE),
            () = slot.gone.cancelled() => return,
        }
    }
}

async fn refresh(blocks: &Blocks, slot: &Arc<Slot>, instances: &mut BTreeMap<String, Instance>) -> AppBlocks {
    let owner = &slot.owner;
    let mut desired: BTreeMap<String, Arc<ComponentSpec>> = {
        let desired = blocks.0.desired.read();
        let own = desired.components.values().filter(|spec| spec.is_for(owner));
        own.map(|spec| (spec.name.clone(), spec.clone())).collect()
    };
    // What is not desired any more, or otherwise, ends; others do not notice.
    instances.retain(|name, instance| {
        !instance.again && desired.get(name).is_some_and(|spec| *spec == instance.spec)
    });
    // Whose secret store is opened anew gets its secrets anew.
    let there: BTreeSet<String> = instances.keys().cloned().collect();
    instances.retain(|_, instance| {
        instance.spec.secrets.is_empty() || there.contains(&instance.spec.secret_store)
    });
    desired.retain(|name, _| !instances.contains_key(name));
    let home = blocks.home_of(slot);
    // A component comes after the store of its secrets, which may have secrets in another.
    while !desired.is_empty() {
        let waits =
            |spec: &ComponentSpec| !spec.secrets.is_empty() && desired.contains_key(&spec.secret_store);
        let mut now: Vec<_> = desired.values().filter(|spec| !waits(spec)).cloned().collect();
        if now.is_empty() {
            // In a circle: none of them will be, and each says so.
            now = desired.values().cloned().collect();
        }
        desired.retain(|name, _| now.iter().all(|spec| spec.name != *name));
        let opening = now.into_iter().map(|spec| {
            let store = instances
                .get(&spec.secret_store)
                .and_then(|instance| instance.component.clone());
            open(blocks, owner, &home, spec, store)
        });
        for instance in join_all(opening).await {
            instances.insert(instance.spec.name.clone(), instance);
        }
    }
    let mut view = AppBlocks::default();
    for instance in instances.values_mut() {
        if let Some(component) = &instance.component
            && let Err(problem) = view.add(&instance.resolved, component, owner)
        {
            tell(&instance.spec, owner, &problem);
            instance.problem = Some(problem);
        }
    }
    let problems = instances.values().filter_map(|instance| {
        let (name, problem) = (&instance.spec.name, instance.problem.as_ref()?);
        Some(format!(
            "app {}: component {}/{name}: {problem}",
            owner.app_id, owner.namespace
        ))
    });
    slot.problems.store(Arc::new(problems.collect()));
    view
}

/// Opens one component, with its secrets out of `store`.
async fn open(
    blocks: &Blocks,
    owner: &Owner,
    home: &Home,
    spec: Arc<ComponentSpec>,
    store: Option<Component>,
) -> Instance {
    let mut resolved = spec.clone();
    let opening = async {
        if !spec.secrets.is_empty() {
            resolved = Arc::new(resolve(&spec, store).await?);
        }
        blocks.0.drivers.open(&resolved, owner, home.clone()).await
    };
    let opened = tokio::time::timeout(spec.init_timeout, opening).await;
    let opened = opened.unwrap_or(Err(InitError::Timeout(spec.init_timeout)));
    let again = matches!(opened, Err(InitError::Failed(_) | InitError::Timeout(_)));
    let problem = opened.as_ref().err().map(ToString::to_string);
    match &opened {
        Err(error) => tell(&spec, owner, &error.to_string()),
        Ok(_) => tracing::info!(
            component = spec.name,
            kind = spec.kind,
            namespace = owner.namespace,
            app = owner.app_id,
            "component opened"
        ),
    }
    Instance {
        component: opened.ok(),
        again,
        problem,
        spec,
        resolved,
    }
}

/// A component's metadata with what its secret store has.
async fn resolve(spec: &ComponentSpec, store: Option<Component>) -> Result<ComponentSpec, InitError> {
    let name = &spec.secret_store;
    let Some(Component::Secrets(store)) = store else {
        return Err(InitError::Failed(format!(
            "secret store {name:?} (auth.secretStore) is not there"
        )));
    };
    let mut values = Vec::with_capacity(spec.secrets.len());
    for reference in &spec.secrets {
        let failed = |problem: String| {
            let field = &reference.field;
            InitError::Failed(format!("metadata {field:?}: secret store {name:?}: {problem}"))
        };
        let metadata = vec![("namespace".to_owned(), spec.namespace.clone())];
        let secret = store.get(reference.name.clone(), metadata).await;
        let mut secret = secret.map_err(|e| failed(e.to_string()))?;
        let value = secret.remove(&reference.key);
        let missing = || {
            failed(format!(
                "secret {:?} has no key {:?}",
                reference.name, reference.key
            ))
        };
        values.push(value.ok_or_else(missing)?);
    }
    Ok(spec.with_secrets(values)?)
}

fn tell(spec: &ComponentSpec, owner: &Owner, problem: &str) {
    let (component, kind, namespace, app) = (&spec.name, &spec.kind, &owner.namespace, &owner.app_id);
    if spec.ignore_errors {
        tracing::warn!(component, kind, namespace, app, problem, "component is left out");
    } else {
        tracing::error!(
            component,
            kind,
            namespace,
            app,
            problem,
            "component can not be used"
        );
    }
}
