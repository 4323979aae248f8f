//! Which addresses names have, as resolvers answered workloads of this node.
//!
//! Owns the table, its bounds and what of it outlives the process. An address is known for as long as the answer
//! holds, a little longer for who is just about to connect, and then for as long as there are connections to it:
//! what is in use is not taken away by a name's short life.

use crate::kept::{self, Line};
use parking_lot::RwLock;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};
use weft_policy_engine::{NameRule, is_meant};

/// How much is remembered, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Addresses of all names together. Each may become a number of the kernel's tables, of which a node has
    /// 16,384 with all ranges that policies name.
    pub addresses: usize,
    /// Addresses of one name: those that were answered last. Cilium's `tofqdns-endpoint-max-ip-per-hostname`.
    pub addresses_per_name: usize,
    /// Answers that hold shorter hold this long. Cilium's `tofqdns-min-ttl`.
    pub min_ttl: Duration,
    /// Between asking and connecting.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            addresses: 8_192,
            addresses_per_name: 1_000,
            min_ttl: Duration::ZERO,
            grace: Duration::from_secs(5),
        }
    }
}

/// No answer holds longer: what a resolver says of a hundred years is not believed (RFC 8767 caps at a week).
const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, Clone, Copy)]
struct Known {
    /// With the grace.
    until: SystemTime,
    /// What the file has.
    kept: SystemTime,
}

#[derive(Debug, Default)]
struct Table {
    names: HashMap<String, HashMap<IpAddr, Known>>,
    /// Of all names.
    addresses: usize,
    file: Option<kept::File>,
}

/// What an answer led to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Learned {
    /// The name has addresses that it had not.
    pub changed: bool,
    /// There was no room for so many.
    pub refused: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Names {
    limits: Limits,
    table: RwLock<Table>,
}

impl Default for Names {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

/// Addresses that are the asker's own, or nobody's: a name that has one opens nothing.
fn is_elsewhere(address: &IpAddr) -> bool {
    let address = address.to_canonical();
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

impl Names {
    /// Knows none.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            table: RwLock::default(),
        }
    }

    /// Takes over what is in a file, beside what is known. Another process may still write it.
    pub fn take_over(&self, path: &Path, now: SystemTime) -> std::io::Result<()> {
        let lines = kept::read(path)?;
        let mut table = self.table.write();
        for line in lines
            .into_iter()
            .filter(|line| line.until > now && is_elsewhere(&line.address))
        {
            self.put(&mut table, &line.name, line.address, line.until, line.until);
        }
        Ok(())
    }

    /// The same once nobody else writes it; from now on what is known is kept there.
    pub fn keep_in(&self, path: &Path, now: SystemTime) -> std::io::Result<()> {
        self.take_over(path, now)?;
        let mut table = self.table.write();
        table.file = Some(kept::File::write(path, &lines_of(&table))?);
        Ok(())
    }

    /// The bound on addresses is the caller's to have made room for.
    fn put(
        &self,
        table: &mut Table,
        name: &str,
        address: IpAddr,
        until: SystemTime,
        kept: SystemTime,
    ) -> bool {
        if let Some(old) = table
            .names
            .get_mut(name)
            .and_then(|known| known.get_mut(&address))
        {
            old.until = old.until.max(until);
            old.kept = old.kept.max(kept);
            return true;
        }
        if table.addresses >= self.limits.addresses {
            return false;
        }
        let known = table.names.entry(name.to_owned()).or_default();
        known.insert(address, Known { until, kept });
        table.addresses += 1;
        true
    }

    /// Takes note of an answer: `name` in lower case, without the dot at the end. It is in the file when this
    /// returns.
    pub fn learn(&self, name: &str, addresses: &[IpAddr], ttl: Duration, now: SystemTime) -> Learned {
        let until = now + ttl.clamp(self.limits.min_ttl.min(MAX_TTL), MAX_TTL) + self.limits.grace;
        let mut learned = Learned::default();
        let mut lines = Vec::new();
        let mut table = self.table.write();
        let addresses = addresses.iter().map(IpAddr::to_canonical).filter(is_elsewhere);
        for address in addresses.take(self.limits.addresses_per_name) {
            let old = table
                .names
                .get(name)
                .and_then(|known| known.get(&address))
                .copied();
            if old.is_none() {
                self.make_room(&mut table, name, now);
            }
            // A file that is behind by less than this costs nobody a connection, and is not written all the time.
            let behind = old.is_none_or(|old| old.kept + self.limits.grace < until);
            let kept = if behind {
                until
            } else {
                old.map_or(until, |old| old.kept)
            };
            if !self.put(&mut table, name, address, until, kept) {
                learned.refused += 1;
                continue;
            }
            learned.changed |= old.is_none();
            if behind {
                let name = name.to_owned();
                lines.push(Line { name, address, until });
            }
        }
        table.keep(&lines);
        learned
    }

    /// For one more address of a name. What has expired goes first, then what expires first: of the name itself
    /// where it has too many.
    fn make_room(&self, table: &mut Table, name: &str, now: SystemTime) {
        let own = table.names.get(name).map_or(0, HashMap::len);
        let victim = if own >= self.limits.addresses_per_name {
            let known = table.names.get(name).into_iter().flatten();
            let first = known.min_by_key(|(_, known)| known.until);
            first.map(|(address, _)| (name.to_owned(), *address))
        } else if table.addresses >= self.limits.addresses {
            let all = table
                .names
                .iter()
                .flat_map(|(name, known)| known.iter().map(move |k| (name, k)));
            // What still holds is not given up for what somebody just asked for.
            let expired = all.filter(|(_, (_, known))| known.until <= now);
            let first = expired.min_by_key(|(_, (_, known))| known.until);
            first.map(|(name, (address, _))| (name.clone(), *address))
        } else {
            None
        };
        if let Some((name, address)) = victim {
            table.remove(&name, &address);
        }
    }

    /// The addresses of all names that a rule means.
    pub fn addresses(&self, rule: &NameRule) -> Vec<IpAddr> {
        let table = self.table.read();
        if let NameRule::Name(name) = rule {
            return table
                .names
                .get(name)
                .into_iter()
                .flat_map(HashMap::keys)
                .copied()
                .collect();
        }
        let meant = table.names.iter().filter(|(name, _)| is_meant(rule, name));
        meant.flat_map(|(_, known)| known.keys()).copied().collect()
    }

    /// The names that have an address, in order: for whoever shows it.
    pub fn of(&self, address: IpAddr) -> Vec<String> {
        let address = address.to_canonical();
        let table = self.table.read();
        let names = table
            .names
            .iter()
            .filter(|(_, known)| known.contains_key(&address));
        names
            .map(|(name, _)| name.clone())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Names and addresses known.
    pub fn len(&self) -> (usize, usize) {
        let table = self.table.read();
        (table.names.len(), table.addresses)
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len().0 == 0
    }

    /// Addresses that are known though their time is over, or will be at `now`.
    pub fn expired(&self, now: SystemTime) -> HashSet<IpAddr> {
        let table = self.table.read();
        let all = table.names.values().flatten();
        all.filter(|(_, known)| known.until <= now)
            .map(|(address, _)| *address)
            .collect()
    }

    /// Forgets what has expired and is not among `alive`; answers the names that have changed.
    pub fn forget(&self, alive: &HashSet<IpAddr>, now: SystemTime) -> Vec<String> {
        let mut table = self.table.write();
        let all = table
            .names
            .iter()
            .flat_map(|(name, known)| known.iter().map(move |k| (name, k)));
        let gone = all.filter(|(_, (address, known))| known.until <= now && !alive.contains(*address));
        let gone: Vec<(String, IpAddr)> = gone
            .map(|(name, (address, _))| (name.clone(), *address))
            .collect();
        for (name, address) in &gone {
            table.remove(name, address);
        }
        // Who is alive is still to be known after a restart.
        let later = now + self.limits.grace * 2;
        let mut lines = Vec::new();
        for (name, known) in &mut table.names {
            let zombies = known
                .iter_mut()
                .filter(|(_, known)| known.until <= now && known.kept < later);
            for (address, known) in zombies {
                known.kept = later + self.limits.grace * 10;
                lines.push(Line {
                    name: name.clone(),
                    address: *address,
                    until: known.kept,
                });
            }
        }
        table.keep(&lines);
        table.compact();
        let names: BTreeSet<String> = gone.into_iter().map(|(name, _)| name).collect();
        names.into_iter().collect()
    }
}

impl Table {
    fn remove(&mut self, name: &str, address: &IpAddr) {
        let Some(known) = self.names.get_mut(name) else {
            return;
        };
        if known.remove(address).is_some() {
            self.addresses -= 1;
        }
        if known.is_empty() {
            self.names.remove(name);
        }
    }

    /// What can not be written is told, once: after a restart its connections would be cut.
    fn keep(&mut self, lines: &[Line]) {
        if let Some(file) = &mut self.file {
            file.append(lines);
        }
    }

    fn compact(&mut self) {
        let Some(mut file) = self.file.take() else { return };
        if file.is_long(self.addresses) {
            file.replace(&lines_of(self));
        }
        self.file = Some(file);
    }
}

fn lines_of(table: &Table) -> Vec<Line> {
    let all = table
        .names
        .iter()
        .flat_map(|(name, known)| known.iter().map(move |k| (name, k)));
    all.map(|(name, (address, known))| Line {
        name: name.clone(),
        address: *address,
        until: known.kept.max(known.until),
    })
    .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn by_pattern(names: &Names, pattern: &str) -> Vec<IpAddr> {
        let mut found = names.addresses(&NameRule::new(pattern, true).unwrap());
        found.sort_unstable();
        found
    }

    #[test]
    fn what_is_learned_is_found_by_name_and_pattern() {
        let names = Names::default();
        let learned = names.learn("a.test", &[address(1), address(2)], SECOND, start());
        assert_eq!(
            learned,
            Learned {
                changed: true,
                refused: 0
            }
        );
        assert!(!names.learn("a.test", &[address(2)], SECOND, start()).changed);
        names.learn("b.test", &[address(2)], SECOND, start());
        assert_eq!(by_pattern(&names, "*.test").len(), 3);
        assert_eq!(
            names.addresses(&NameRule::new("b.test", false).unwrap()),
            [address(2)]
        );
        assert_eq!(names.of(address(2)), ["a.test", "b.test"]);
        // Mapped addresses are the addresses, and nobody's open nothing.
        let mapped: IpAddr = "::ffff:192.0.2.2".parse().unwrap();
        let nobody =
            ["127.0.0.1", "0.0.0.0", "::1", "224.0.0.1", "::ffff:127.0.0.1"].map(|a| a.parse().unwrap());
        assert!(!names.learn("b.test", &[mapped], SECOND, start()).changed);
        assert!(!names.learn("c.test", &nobody, SECOND, start()).changed);
    }

    #[test]
    fn an_address_goes_with_its_answer_unless_it_is_in_use() {
        let names = Names::default();
        let (all, none) = (HashSet::from([address(1)]), HashSet::new());
        names.learn("a.test", &[address(1), address(2)], SECOND * 10, start());
        let end = start() + SECOND * 10 + Limits::default().grace;
        assert!(names.expired(end - SECOND).is_empty());
        assert!(names.forget(&none, end - SECOND).is_empty());
        assert_eq!(names.expired(end), [address(1), address(2)].into());
        assert_eq!(names.forget(&all, end), ["a.test"]);
        assert!(by_pattern(&names, "*.").is_empty(), "one label");
        assert_eq!(by_pattern(&names, "*.test"), [address(1)]);
        // Its connection has ended.
        assert_eq!(names.forget(&none, end), ["a.test"]);
        assert!(names.is_empty());
    }

    #[test]
    fn a_new_answer_prolongs_and_never_shortens() {
        let names = Names::default();
        names.learn("a.test", &[address(1)], SECOND * 100, start());
        names.learn("a.test", &[address(1)], SECOND, start());
        let grace = Limits::default().grace;
        assert!(names.expired(start() + SECOND * 99 + grace).is_empty());
        names.learn("a.test", &[address(1)], SECOND * 100, start() + SECOND * 50);
        assert!(names.expired(start() + SECOND * 101 + grace).is_empty());
        let years = Duration::from_secs(u32::MAX.into());
        names.learn("b.test", &[address(2)], years, start());
        assert!(names.expired(start() + MAX_TTL + grace).contains(&address(2)));
    }

    #[test]
    fn there_are_bounds() {
        let limits = Limits {
            addresses: 4,
            addresses_per_name: 2,
            min_ttl: SECOND * 30,
            ..Limits::default()
        };
        let names = Names::new(limits);
        names.learn("a.test", &[address(1), address(2), address(3)], SECOND, start());
        assert_eq!(
            by_pattern(&names, "*.test"),
            [address(1), address(2)],
            "of one answer the first"
        );
        // Of several answers the last.
        names.learn("a.test", &[address(9)], SECOND * 60, start());
        assert_eq!(names.len(), (1, 2));
        assert!(by_pattern(&names, "*.test").contains(&address(9)));
        names.learn("b.test", &[address(4), address(5)], SECOND, start());
        let learned = names.learn("c.test", &[address(6)], SECOND, start());
        assert_eq!(
            learned,
            Learned {
                changed: false,
                refused: 1
            },
            "all hold still"
        );
        assert!(
            names.expired(start() + SECOND * 29).is_empty(),
            "the least time to live"
        );
        let later = start() + SECOND * 30 + limits.grace;
        let learned = names.learn("c.test", &[address(6)], SECOND, later);
        assert_eq!(
            learned,
            Learned {
                changed: true,
                refused: 0
            },
            "what has expired gives way"
        );
        assert_eq!(names.len().1, 4);
    }

    #[test]
    fn what_is_known_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.state");
        let names = Names::default();
        names.keep_in(&path, start()).unwrap();
        names.learn("a.test", &[address(1)], SECOND * 10, start());
        names.learn("b.test", &[address(2)], SECOND * 100, start());
        // Killed, not ended.
        let later = start() + SECOND * 50;
        let next = Names::default();
        next.keep_in(&path, later).unwrap();
        assert_eq!(by_pattern(&next, "*.test"), [address(2)]);
        // One that is ending still writes; who follows reads it again.
        next.learn("c.test", &[address(3)], SECOND * 100, later);
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| {
                use std::io::Write;
                file.write_all(b"{\"name\":\"d.test\",\"address\":\"192.0.2.4\",\"until\":4000000000}\n{\"na")
            })
            .unwrap();
        next.keep_in(&path, later).unwrap();
        assert_eq!(by_pattern(&next, "*.test"), [address(2), address(3), address(4)]);
    }

    #[test]
    fn what_is_in_use_outlives_the_process_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.state");
        let names = Names::default();
        names.keep_in(&path, start()).unwrap();
        names.learn("a.test", &[address(1)], SECOND, start());
        let later = start() + SECOND * 60;
        assert!(names.forget(&HashSet::from([address(1)]), later).is_empty());
        let next = Names::default();
        next.keep_in(&path, later + SECOND).unwrap();
        assert_eq!(by_pattern(&next, "*.test"), [address(1)]);
        next.forget(&HashSet::new(), later + SECOND * 1000);
        assert!(next.is_empty());
    }

    #[test]
    fn the_file_does_not_grow_with_each_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.state");
        let names = Names::default();
        names.keep_in(&path, start()).unwrap();
        for n in 0..20_000 {
            names.learn("a.test", &[address(1)], SECOND * 10, start() + SECOND * 60 * n);
            names.forget(&HashSet::from([address(1)]), start() + SECOND * 60 * n);
        }
        let length = std::fs::metadata(&path).unwrap().len();
        assert!(length < 1_000_000, "{length} bytes");
        let next = Names::default();
        next.keep_in(&path, start() + SECOND * 60 * 19_999).unwrap();
        assert_eq!(next.len(), (1, 1));
    }
}
