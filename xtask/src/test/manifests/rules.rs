//! Rules beyond the schemas: about rendered manifests, and about the patches that make them. Pure.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// The class for what carries packets: it alone lowers the containers' `oom_score_adj` to -997.
const NODE_CRITICAL: &str = "system-node-critical";

/// Images that this repository builds end in these names, whatever registry an overlay puts before them.
const OWN_IMAGES: [&str; 2] = ["drover/lb-node", "drover/bird"];

/// Holds rendered documents against the rules; `version` is this repository's.
pub(super) fn check(documents: &[Value], version: &str) -> Result<()> {
    let mut tags = BTreeMap::new();
    let mut classes = Vec::new();
    for document in documents {
        let Some(pod) = document.pointer("/spec/template/spec") else { continue };
        let name = format!("{} {}", text(document, "/kind"), text(document, "/metadata/name"));
        for container in containers(pod) {
            let image = text(container, "/image");
            let (image, tag) = tagged(image).with_context(|| format!("{name}: image {image:?}"))?;
            let other = tags.entry(image.to_owned()).or_insert(tag.to_owned());
            ensure!(other == tag, "{name}: image {image} is {tag} here and {other} elsewhere");
            if OWN_IMAGES.iter().any(|own| image.ends_with(&format!("/{own}"))) {
                ensure!(tag == version, "{name}: image {image} is {tag}, and this version {version}");
            }
        }
        let class = text(pod, "/priorityClassName");
        ensure!(class.starts_with("system-"), "{name}: its class {class:?} is not the system's");
        classes.push(class);
        if pod.pointer("/hostNetwork") == Some(&Value::Bool(true)) {
            ensure!(class == NODE_CRITICAL, "{name}: it carries packets, so its class is {NODE_CRITICAL}");
        }
        // The controller of a DaemonSet adds these by itself.
        if pod.pointer("/hostNetwork") == Some(&Value::Bool(true)) && text(document, "/kind") != "DaemonSet" {
            for taint in ["not-ready", "unreachable"] {
                let key = format!("node.kubernetes.io/{taint}");
                ensure!(stays(pod, &key), "{name}: it does not tolerate {key} for good");
            }
        }
    }
    ensure!(!classes.is_empty(), "nothing rendered has pods");
    for class in classes {
        ensure!(documents.iter().any(|document| allows(document, class)), "no ResourceQuota allows {class}");
    }
    Ok(())
}

/// Checks that a kustomization's patches say what they expect wherever they count: `- op: test` of something at a number
/// stands before each other operation that goes through the same number.
pub(super) fn patches_are_guarded(operations: &[Value]) -> Result<()> {
    let mut tested: Vec<&str> = Vec::new();
    for operation in operations {
        let path = text(operation, "/path");
        if text(operation, "/op") == "test" {
            tested.push(path);
            continue;
        }
        for counted in counted(path) {
            let guard = format!("{counted}/");
            ensure!(
                tested.iter().any(|test| test.starts_with(&guard)),
                "a patch of {path} goes by a number; put an `op: test` of something below {counted} before it"
            );
        }
    }
    Ok(())
}

/// The beginnings of a path that end in a number.
fn counted(path: &str) -> Vec<&str> {
    let ends = path.match_indices('/').map(|(end, _)| end).skip(1).chain([path.len()]);
    let beginnings = ends.map(|end| &path[..end]);
    beginnings.filter(|beginning| last(beginning).bytes().all(|byte| byte.is_ascii_digit())).collect()
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Name and tag or digest of an image.
fn tagged(image: &str) -> Result<(&str, &str)> {
    let (name, tag) = match image.split_once('@') {
        Some((name, digest)) => (name.split_once(':').map_or(name, |(name, _)| name), digest),
        None => match image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
            Some(parts) => parts,
            None => bail!("has neither tag nor digest: whoever pulls it last gets another one"),
        },
    };
    ensure!(!["", "latest"].contains(&tag), "the tag {tag:?} moves");
    ensure!(name.contains('/'), "say which registry it is from");
    Ok((name, tag))
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["/initContainers", "/containers"].map(|list| pod.pointer(list).and_then(Value::as_array));
    lists.into_iter().flatten().flatten()
}

/// Returns whether a pod stays on a host with this taint however long it is there.
fn stays(pod: &Value, key: &str) -> bool {
    let tolerations = pod.pointer("/tolerations").and_then(Value::as_array);
    tolerations.into_iter().flatten().any(|toleration| {
        text(toleration, "/key") == key
            && ["", "NoExecute"].contains(&text(toleration, "/effect"))
            && toleration.get("tolerationSeconds").is_none()
    })
}

/// Returns whether a document is a quota that lets its namespace have pods of a class.
fn allows(document: &Value, class: &str) -> bool {
    let scopes = document.pointer("/spec/scopeSelector/matchExpressions").and_then(Value::as_array);
    let mut values =
        scopes.into_iter().flatten().filter_map(|scope| scope.get("values")?.as_array()).flatten();
    text(document, "/kind") == "ResourceQuota" && values.any(|value| value == class)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(image: &str) -> Value {
        json!({"kind": "StatefulSet", "metadata": {"name": "lb-node"}, "spec": {"template": {"spec": {
            "hostNetwork": true, "priorityClassName": "system-node-critical",
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists"}],
            "containers": [{"name": "lb-node", "image": image}]}}}})
    }

    fn quota() -> Value {
        json!({"kind": "ResourceQuota", "spec": {"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["system-node-critical"]}]}}})
    }

    fn refusal(node: Value) -> String {
        format!("{:#}", check(&[quota(), node], "0.1.0").unwrap_err())
    }

    #[test]
    fn an_image_has_a_registry_and_a_tag_that_stays_and_is_this_version() {
        let digest = format!("registry.example/zookeeper@sha256:{}", "0".repeat(64));
        for image in ["localhost/drover/lb-node:0.1.0", "registry.example:5000/drover/lb-node:0.1.0", &digest]
        {
            check(&[quota(), node(image)], "0.1.0").unwrap();
        }
        assert!(refusal(node("localhost/drover/lb-node")).contains("neither tag nor digest"));
        assert!(refusal(node("registry.example:5000/drover/lb-node")).contains("neither tag nor digest"));
        assert!(refusal(node("localhost/drover/lb-node:latest")).contains("moves"));
        assert!(refusal(node("zookeeper:3.8.7")).contains("registry"));
        assert!(refusal(node("localhost/drover/lb-node:0.0.9")).contains("this version 0.1.0"));
        let two = [quota(), node("a.example/other:1"), node("a.example/other:2")];
        assert!(check(&two, "0.1.0").unwrap_err().to_string().contains("elsewhere"));
    }

    #[test]
    fn what_carries_packets_is_of_the_class_that_is_killed_last_and_stays_where_it_is() {
        let sound = node("localhost/drover/lb-node:0.1.0");
        for class in ["drover", "system-cluster-critical"] {
            let mut wrong = sound.clone();
            wrong["spec"]["template"]["spec"]["priorityClassName"] = class.into();
            assert!(refusal(wrong).contains("class"), "{class}");
        }
        let mut wrong = sound.clone();
        wrong["spec"]["template"]["spec"]["tolerations"][0]["tolerationSeconds"] = 300.into();
        assert!(refusal(wrong).contains("not-ready"));
        let alone = check(&[sound], "0.1.0").unwrap_err().to_string();
        assert!(alone.contains("no ResourceQuota allows system-node-critical"), "{alone}");
    }

    #[test]
    fn a_patch_by_number_is_tested_first() {
        let operation = |op: &str, path: &str| json!({"op": op, "path": path});
        let add = operation("add", "/spec/containers/0/args/-");
        let test = operation("test", "/spec/containers/0/name");
        patches_are_guarded(&[test.clone(), add.clone()]).unwrap();
        patches_are_guarded(&[operation("add", "/spec/volumes/-")]).unwrap();
        assert!(patches_are_guarded(&[add.clone(), test.clone()]).is_err());
        assert!(patches_are_guarded(&[operation("test", "/spec/containers/1/name"), add]).is_err());
        let deeper = operation("replace", "/spec/containers/0/env/0/value");
        assert!(patches_are_guarded(&[test.clone(), deeper.clone()]).is_err());
        patches_are_guarded(&[test, operation("test", "/spec/containers/0/env/0/name"), deeper]).unwrap();
        assert!(patches_are_guarded(&[operation("remove", "/spec/volumes/2")]).is_err());
    }
}
