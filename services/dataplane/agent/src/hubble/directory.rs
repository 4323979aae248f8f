//! What the mesh knows of the ends of a flow, when it is read.

use crate::view::View;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use weft_flows::{Party, hubble::Directory};
use weft_model::NumericIdentity;

/// Endpoints' numbers are read again after so long.
const KEEP: Duration = Duration::from_secs(1);

/// Numbers of this node's endpoints by namespace and name.
type Numbers = HashMap<(String, String), u32>;

/// From the agent's view.
pub struct Known {
    view: View,
    numbers: Mutex<Option<(Instant, Arc<Numbers>)>>,
}

impl Known {
    pub fn new(view: View) -> Self {
        Self {
            view,
            numbers: Mutex::new(None),
        }
    }

    fn numbers(&self) -> Arc<Numbers> {
        let mut kept = self.numbers.lock();
        if let Some((read, numbers)) = &*kept
            && read.elapsed() < KEEP
        {
            return numbers.clone();
        }
        let locals = self.view.locals.all().into_iter();
        let numbers = locals.filter_map(|local| {
            let member = local.member()?;
            let workload = &member.workload;
            Some((
                (workload.namespace.clone(), workload.name.clone()),
                local.seat.number,
            ))
        });
        let numbers: Arc<Numbers> = Arc::new(numbers.collect());
        *kept = Some((Instant::now(), numbers.clone()));
        numbers
    }
}

impl Directory for Known {
    fn labels(&self, identity: NumericIdentity) -> Vec<String> {
        self.view.mesh.labels(identity)
    }

    fn endpoint(&self, party: &Party) -> u32 {
        let key = (party.namespace.to_string(), party.workload.to_string());
        self.numbers().get(&key).copied().unwrap_or(0)
    }
}
