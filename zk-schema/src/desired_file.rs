//! The operators' wishes, as a file: the VIPs and reals of a cluster file, without the node that may be in it.
//!
//! `docs/cluster-file.md` describes every field.

use crate::cluster_file::vips_to_toml;
use crate::file::{FileErrors, parse};
use crate::problem::{Problem, Problems, Report, Scope};
use crate::reader::{Decode, Fields, decode};
use crate::records::{Cluster, ClusterSeed, Desired, Node, VipState};
use crate::validate::Rules;
use crate::{ClusterFile, VipName};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A [`ClusterFile`] as far as it concerns all nodes: its table `[node]` may be left out, and is checked and ignored
/// otherwise.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct DesiredFile {
    /// The cluster's seed, if the file names one.
    pub seed: Option<ClusterSeed>,
    /// The size of the tables, if the file names one.
    pub table_size: Option<u32>,
    /// VIPs by name.
    pub vips: BTreeMap<VipName, VipState>,
}

impl DesiredFile {
    /// Reads and validates a file's text in TOML. `name` is what messages call the file.
    ///
    /// # Errors
    ///
    /// All problems by line. An unknown field is one, so that no misspelt setting passes for its default.
    pub fn parse(text: &str, name: &str) -> Result<Self, FileErrors> {
        parse(text, name)
    }

    /// Reads and validates the same in JSON.
    ///
    /// # Errors
    ///
    /// All problems by field; an unknown field is one.
    pub fn from_json(object: &Map<String, Value>) -> Result<Self, Problems> {
        let mut report = Report::default();
        let file: Self = decode(object, &mut report);
        file.check(&mut Scope::top(&mut report));
        let (problems, unknown) = report.into_parts();
        let unknown =
            unknown.iter().map(|field| Problem { field: field.field.clone(), message: field.message() });
        let all: Vec<Problem> = problems.iter().cloned().chain(unknown).collect();
        if all.is_empty() { Ok(file) } else { Err(Problems::from(all)) }
    }

    /// The same in JSON. Fields of newer versions are left out.
    ///
    /// # Errors
    ///
    /// If serialisation fails, which no record of this version causes.
    pub fn to_json(&self) -> Result<Map<String, Value>, serde_json::Error> {
        let mut vips = Map::new();
        for (name, state) in &self.vips {
            let mut vip = serde_json::to_value(&state.vip)?;
            vip["reals"] = serde_json::to_value(&state.reals)?;
            vips.insert(name.to_string(), vip);
        }
        let mut file = Map::new();
        let mut cluster = Map::new();
        if let Some(seed) = self.seed {
            cluster.insert("seed".into(), seed.to_string().into());
        }
        if let Some(table_size) = self.table_size {
            cluster.insert("table_size".into(), table_size.into());
        }
        file.insert("cluster".into(), cluster.into());
        file.insert("vips".into(), vips.into());
        Ok(file)
    }

    /// Writes the file that [`parse`](Self::parse) reads as this. Fields of newer versions are left out.
    ///
    /// # Errors
    ///
    /// If serialisation fails, which no record of this version causes.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut cluster = toml::Table::new();
        if let Some(seed) = self.seed {
            cluster.insert("seed".into(), seed.to_string().into());
        }
        if let Some(table_size) = self.table_size {
            cluster.insert("table_size".into(), i64::from(table_size).into());
        }
        let mut file = toml::Table::new();
        file.insert("cluster".into(), cluster.into());
        file.insert("vips".into(), vips_to_toml(&self.vips)?.into());
        toml::to_string(&file)
    }

    /// Returns the VIPs and reals that the file asks for in a cluster whose record is `cluster`.
    fn desired(&self) -> Desired {
        let default = Cluster::default();
        let cluster = Cluster { table_size: self.table_size.unwrap_or(default.table_size), ..default };
        Desired { cluster, vips: self.vips.clone() }
    }
}

impl From<ClusterFile> for DesiredFile {
    fn from(file: ClusterFile) -> Self {
        let Cluster { seed, table_size, .. } = file.desired.cluster;
        Self { seed: Some(seed), table_size: Some(table_size), vips: file.desired.vips }
    }
}

impl Decode for DesiredFile {
    fn decode(fields: &mut Fields<'_>) -> Self {
        let _: Option<Node> = fields.table("node", Decode::decode);
        let cluster = fields.table("cluster", |fields| {
            let has = |key| fields.has(key);
            let (seed, table_size) = (has("seed"), has("table_size"));
            let cluster = Cluster::decode(fields);
            (seed.then_some(cluster.seed), table_size.then_some(cluster.table_size))
        });
        let (seed, table_size) = cluster.unwrap_or_default();
        let vips = fields.tables("vips", VipState::decode);
        Self { seed, table_size, vips }
    }
}

impl Rules for DesiredFile {
    fn check(&self, scope: &mut Scope<'_>) {
        self.desired().check(scope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const VIPS: &str = r#"[vips.publish]
address = "198.51.100.10"
port = 1883
protocol = "tcp"

[vips.publish.reals.broker-1]
address = "10.0.2.11"
"#;

    fn json(value: Value) -> Result<DesiredFile, String> {
        let object = value.as_object().unwrap();
        DesiredFile::from_json(object).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_file_of_vips_alone_will_do_and_so_will_that_of_a_standalone_node() {
        let alone = DesiredFile::parse(VIPS, "cluster.toml").unwrap();
        assert_eq!((alone.seed, alone.table_size, alone.vips.len()), (None, None, 1));
        let node =
            format!("[node]\nname = \"lb-1\"\ninterface = \"eth0\"\n[cluster]\ntable_size = 655373\n{VIPS}");
        let with_node = DesiredFile::parse(&node, "cluster.toml").unwrap();
        assert_eq!(with_node, DesiredFile { table_size: Some(655_373), ..alone });
    }

    #[test]
    fn what_is_wrong_is_told_by_line_also_in_the_node() {
        let text = format!("[node]\nname = \"LB\"\n{}", VIPS.replace("1883", "-1"));
        let error = DesiredFile::parse(&text, "c.toml").unwrap_err().to_string();
        let told =
            ["c.toml:2:8: node.name", "c.toml:1:2: node.interface: missing", "c.toml:5:8: vips.publish.port"];
        for told in told {
            assert!(error.contains(told), "{told} is not in\n{error}");
        }
    }

    #[test]
    fn json_says_the_same_as_toml() {
        let file = DesiredFile::parse(VIPS, "cluster.toml").unwrap();
        assert_eq!(DesiredFile::from_json(&file.to_json().unwrap()).unwrap(), file);
        assert_eq!(DesiredFile::parse(&file.to_toml().unwrap(), "again").unwrap(), file);
        let misspelt =
            json!({"vips": {"publish": {"address": "198.51.100.10", "port": 0, "protocl": "tcp"}}});
        assert_eq!(
            json(misspelt).unwrap_err(),
            "vips.publish.protocol: missing; it must be tcp or udp; \
             vips.publish.protocl: unknown field; did you mean `protocol`?"
        );
    }
}
