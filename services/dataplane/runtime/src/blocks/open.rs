//! Opening and closing one app's components as manifests come and go.

use super::{AppBlocks, Blocks, Slot};
use futures::future::join_all;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use weft_components_api::{Component, ComponentSpec, InitError};

/// What could not be opened is tried again after this pause, which doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

struct Instance {
    spec: Arc<ComponentSpec>,
    component: Option<Component>,
    /// It may be there another time.
    again: bool,
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
        slot.view.store(Arc::new(opened));
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

async fn refresh(blocks: &Blocks, slot: &Slot, instances: &mut BTreeMap<String, Instance>) -> AppBlocks {
    let owner = &slot.owner;
    let desired: BTreeMap<String, Arc<ComponentSpec>> = {
        let desired = blocks.0.desired.read();
        let own = desired.components.values().filter(|spec| spec.is_for(owner));
        own.map(|spec| (spec.name.clone(), spec.clone())).collect()
    };
    // What is not desired any more, or otherwise, ends; others do not notice.
    instances.retain(|name, instance| {
        !instance.again && desired.get(name).is_some_and(|spec| *spec == instance.spec)
    });
    let new = desired
        .into_values()
        .filter(|spec| !instances.contains_key(&spec.name));
    let opened = new.map(|spec| async move {
        let opening = blocks.0.drivers.open(&spec, owner, blocks.files_of(owner));
        let opened = tokio::time::timeout(spec.init_timeout, opening).await;
        let opened = opened.unwrap_or(Err(InitError::Timeout(spec.init_timeout)));
        (spec, opened)
    });
    for (spec, opened) in join_all(opened).await {
        let again = matches!(opened, Err(InitError::Failed(_) | InitError::Timeout(_)));
        if let Err(error) = &opened {
            tell(&spec, owner, &error.to_string());
        } else {
            tracing::info!(
                component = spec.name,
                kind = spec.kind,
                namespace = owner.namespace,
                app = owner.app_id,
                "component opened"
            );
        }
        let instance = Instance {
            component: opened.ok(),
            again,
            spec,
        };
        instances.insert(instance.spec.name.clone(), instance);
    }
    let mut view = AppBlocks::default();
    for instance in instances.values() {
        if let Some(component) = &instance.component
            && let Err(problem) = view.add(&instance.spec, component, owner)
        {
            tell(&instance.spec, owner, &problem);
        }
    }
    view
}

fn tell(spec: &ComponentSpec, owner: &weft_components_api::Owner, problem: &str) {
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
