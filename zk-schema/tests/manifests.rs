//! The node files in the Kubernetes manifests are node files.

use std::error::Error;
use std::time::Duration;
use zk_schema::{FrontDriver, NodeFile, NodeOverrides, RealFile};

const STATEFUL_SET: &str = include_str!("../../k8s/base/lb-node/stateful-set.yaml");
const FILES: [(&str, &str); 3] = [
    ("base", include_str!("../../k8s/base/lb-node/node.toml")),
    ("demo", include_str!("../../k8s/overlays/demo/node.toml")),
    ("production", include_str!("../../k8s/overlays/production/node.toml")),
];

/// Withdrawing takes so long at most, when BIRD does not answer, and leaving and BIRD's end some more.
const BESIDE_THE_WAIT: Duration = Duration::from_secs(35);

#[test]
fn with_the_name_that_a_pod_gives_each_is_complete_and_its_drain_fits_the_pods_grace()
-> Result<(), Box<dyn Error>> {
    let grace =
        STATEFUL_SET.lines().find_map(|line| line.trim().strip_prefix("terminationGracePeriodSeconds: "));
    let grace = Duration::from_secs(grace.ok_or("the pods have no grace period")?.parse()?);
    let instead = NodeOverrides { name: Some("lb-node-0".parse()?), ..NodeOverrides::default() };
    for (overlay, text) in FILES {
        let file = NodeFile::parse_with(text, overlay, &instead)?;
        assert!(file.cluster.drain_wait() + BESIDE_THE_WAIT <= grace, "{overlay}");
        assert!(
            NodeFile::parse(text, overlay).is_err(),
            "{overlay}: a name in it would be that of every pod"
        );
        // The demo has no BIRD.
        assert_eq!(file.front.driver == FrontDriver::Bird, overlay != "demo", "{overlay}");
    }
    Ok(())
}

#[test]
fn the_file_of_reals_is_one() -> Result<(), Box<dyn Error>> {
    RealFile::parse(include_str!("../../k8s/components/real-agent/real.toml"), "real.toml")?;
    Ok(())
}
