#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use crate::commands::export::{self, Syntax};
use crate::edit::carry_out::carry_out;
use crate::edit::testing::tree;
use coordination::memory::MemoryStore;
use coordination::{Change, Session as _, Store as _, setup};
use proptest::collection::btree_map;
use proptest::prelude::*;
use std::sync::Arc;
use zk_schema::{Cluster, Desired};

const FILE: &str = r#"[vips.mqtt]
address = "198.51.100.0"
port = 1883
protocol = "tcp"

[vips.mqtt.reals.a]
address = "10.0.0.1"
weight = 60
"#;

fn file(text: &str) -> DesiredFile {
    parse(text, "test.toml").unwrap()
}

fn steps(plan: &Plan) -> String {
    plan.steps.iter().map(ToString::to_string).collect()
}

#[test]
fn what_the_file_does_not_have_stays_and_is_named_unless_it_is_pruned() {
    let tree = tree(&["mqtt/a", "mqtt/b", "web/c"]);
    let kept = plan(&tree, &file(FILE), false, 0).unwrap();
    assert_eq!(steps(&kept), "~ real mqtt/a\n    weight: 100 -> 60\n");
    assert_eq!(
        kept.remarks[0].text,
        "not in the file, and left as they are without --prune: vip web, real mqtt/b"
    );
    let pruned = plan(&tree, &file(FILE), true, 0).unwrap();
    let expected = "- real web/c\n- vip web\n- real mqtt/b\n~ real mqtt/a\n    weight: 100 -> 60\n";
    assert_eq!(steps(&pruned), expected);
    assert!(pruned.is_dangerous() && !kept.is_dangerous());
}

#[test]
fn a_vip_may_take_the_place_of_one_that_is_pruned() {
    let tree = tree(&["old/a", "mqtt/a"]);
    let renamed = FILE.replace("vips.mqtt", "vips.new");
    assert!(plan(&tree, &file(&renamed), false, 0).unwrap_err().to_string().contains("belongs to VIP"));
    assert!(plan(&tree, &file(&renamed), true, 0).is_ok());
}

#[test]
fn another_seed_or_size_of_tables_is_refused() {
    let tree = tree(&["mqtt/a"]);
    let of = |cluster: &str| plan(&tree, &file(&format!("[cluster]\n{cluster}\n{FILE}")), false, 0);
    let seed = Cluster::default().seed;
    assert!(of(&format!("seed = \"{seed}\"")).is_ok() && of("table_size = 65537").is_ok());
    let refused =
        of("seed = \"00000000000000000000000000000001\"\ntable_size = 655373").unwrap_err().to_string();
    assert!(refused.contains("seed is 0") && refused.contains("table_size is 655373"), "{refused}");
}

#[test]
fn json_is_taken_too_and_its_mistakes_are_told() {
    let json = serde_json::to_string(&file(FILE).to_json().unwrap()).unwrap();
    assert_eq!(file(&json), file(FILE));
    let error = parse(&json.replace("\"weight\"", "\"wieght\""), "c.json").unwrap_err().to_string();
    assert_eq!(error, "c.json: vips.mqtt.reals.a.wieght: unknown field; did you mean `weight`?");
    assert!(parse("{", "c.json").unwrap_err().to_string().contains("not JSON"));
}

#[test]
fn reals_that_register_themselves_are_not_exported_and_survive_a_prune() {
    let mut tree = tree(&["mqtt/a", "mqtt/own"]);
    Arc::make_mut(
        &mut Arc::make_mut(tree.vips.get_mut("mqtt").unwrap()).reals.get_mut("own").unwrap().znode,
    )
    .owner = Some(7);
    let exported = export::text(&tree, Syntax::Toml).unwrap();
    assert!(exported.starts_with("# mqtt/own registers itself.\n"), "{exported}");
    let plan = plan(&tree, &file(&exported), true, 0).unwrap();
    assert!(plan.steps.is_empty() && !plan.is_dangerous(), "{plan:?}");
}

#[test]
fn what_is_broken_is_not_exported_as_if_it_were_not_there() {
    let mut tree = tree(&["mqtt/a", "web/a"]);
    Arc::make_mut(tree.vips.get_mut("web").unwrap()).vip.record = Err("port: missing".to_owned());
    let error = export::text(&tree, Syntax::Toml).unwrap_err().to_string();
    assert!(error.contains("vip web: port: missing"), "{error}");
}

fn vip() -> impl Strategy<Value = String> {
    let health = prop_oneof![
        Just(String::new()),
        (100..5_000_u32).prop_map(|ms| format!("health.type = \"mqtt\"\nhealth.interval_ms = {ms}\n")),
        (100..=599_u16).prop_map(|status| format!("health.type = \"http\"\nhealth.status = [{status}]\n")),
    ];
    let encapsulation = prop_oneof![Just("gue"), Just("ipip")];
    let reals = btree_map("[a-z][a-z0-9]{0,5}", (any::<u8>(), any::<u16>()), 0..6);
    (any::<u8>(), 1..u16::MAX, encapsulation, health, 0..1_000_u32, reals).prop_map(
        |(host, port, encapsulation, health, rate, reals)| {
            let mut text = format!(
                "address = \"198.51.100.{host}\"\nport = {port}\nprotocol = \"tcp\"\nencapsulation = \"{encapsulation}\"\n\
                 limits.connections_per_second = {rate}\n{health}"
            );
            for (name, (host, weight)) in reals {
                text.push_str(&format!("reals.{name} = {{ address = \"10.0.0.{host}\", weight = {weight} }}\n"));
            }
            text
        },
    )
}

/// Files whose VIPs and reals go together.
fn files() -> impl Strategy<Value = DesiredFile> {
    let text = |vips: std::collections::BTreeMap<String, String>| {
        vips.iter().map(|(name, vip)| format!("[vips.{name}]\n{vip}\n")).collect::<String>()
    };
    btree_map("[a-z][a-z0-9-]{0,5}[a-z]", vip(), 0..5)
        .prop_filter_map("they do not go together", move |vips| parse(&text(vips), "random").ok())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is in a tree: what `export` prints, `apply` takes without finding a difference, also in a tree that is
    /// empty, which is then the same; and from any tree `apply --prune` leads to any other.
    #[test]
    fn export_and_apply_are_each_others_inverse(first in files(), second in files(), in_json in any::<bool>()) {
        let syntax = if in_json { Syntax::Json } else { Syntax::Toml };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let session = MemoryStore::new().client("lbctl").connect().await.unwrap();
            setup::init(&session, &Cluster::default()).await.unwrap();
            let desired = Desired { vips: first.vips.clone(), ..Desired::default() };
            setup::write_desired(&session, &desired).await.unwrap();
            for wanted in [&first, &second] {
                let tree = Tree::read(&session).await.unwrap();
                let plan = plan(&tree, wanted, true, 0).unwrap();
                carry_out(&session, &plan).await.unwrap();
                let tree = Tree::read(&session).await.unwrap();
                let exported = export::text(&tree, syntax).unwrap();
                let read = file(&exported);
                assert_eq!(&read.vips, &wanted.vips);
                assert!(super::plan(&tree, &read, true, 0).unwrap().steps.is_empty());
            }
        });
    }
}

#[tokio::test]
async fn records_written_by_hand_in_another_form_are_no_difference() {
    let session = MemoryStore::new().client("lbctl").connect().await.unwrap();
    setup::init(&session, &Cluster::default()).await.unwrap();
    let create = |path: &str, data: &str| Change::Create {
        path: path.to_owned(),
        data: data.as_bytes().to_vec(),
        ephemeral: false,
    };
    let changes = vec![
        create("/drover/vips/mqtt", r#"{ "protocol": "tcp", "port": 1883, "address": "198.51.100.0" }"#),
        create("/drover/vips/mqtt/reals", ""),
        create("/drover/vips/mqtt/reals/a", r#"{"weight":60,"address":"10.0.0.1"}"#),
    ];
    session.commit(changes).await.unwrap();
    let tree = Tree::read(&session).await.unwrap();
    assert_eq!(plan(&tree, &file(FILE), true, 0).unwrap(), Plan::default());
}
