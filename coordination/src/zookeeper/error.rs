//! Translates the client library's errors.

use zookeeper_client as zk;

use crate::Error;

/// Returns whether the library has broken down, as opposed to a server's answer. The session is of no use then.
pub(super) fn is_breakdown(error: &zk::Error) -> bool {
    matches!(error, zk::Error::UnexpectedError(_))
}

/// Translates the error of an operation on `path`.
pub(super) fn of_operation(path: &str, error: zk::Error) -> Error {
    use zk::Error as E;
    match error {
        // A connection that breaks shows as either of these two. The others pass too: the request did not reach the
        // leader, or the leader had too much to do.
        E::ConnectionLoss
        | E::Custom(_)
        | E::Timeout
        | E::Throttled
        | E::SessionMoved
        | E::NotReadOnly
        | E::NoHosts => Error::Lost(format!("{path}: {error}")),
        E::SessionExpired | E::ClientClosed | E::UnexpectedError(_) => Error::Expired,
        E::NoNode => Error::NoNode(path.to_owned()),
        E::NodeExists => Error::Exists(path.to_owned()),
        E::BadVersion => Error::BadVersion(path.to_owned()),
        E::NotEmpty => Error::NotEmpty(path.to_owned()),
        E::NoAuth => Error::NoAuth(path.to_owned()),
        E::AuthFailed => Error::AuthFailed("the session was ended by the server".to_owned()),
        E::NoChildrenForEphemerals => {
            Error::Other(format!("{path}: its parent is ephemeral, and such a znode has no children"))
        }
        E::InvalidAcl => Error::Other(format!(
            "{path}: the server refuses the ACL; a znode for its creator alone needs credentials that the server has \
             accepted"
        )),
        E::QuotaExceeded => Error::Other(format!(
            "{path}: over the quota of ZooKeeper; see `listquota` in zkCli.sh, and raise or delete it (`delquota`)"
        )),
        other => Error::Other(format!("{path}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_lost_and_what_ended_is_expired() {
        for passing in [
            zk::Error::ConnectionLoss,
            zk::Error::Timeout,
            zk::Error::Throttled,
            zk::Error::SessionMoved,
            zk::Error::NotReadOnly,
        ] {
            assert!(of_operation("/a", passing).is_lost());
        }
        for ended in [zk::Error::SessionExpired, zk::Error::ClientClosed] {
            assert_eq!(of_operation("/a", ended), Error::Expired);
        }
    }

    #[test]
    fn a_refusal_names_the_path() {
        for refusal in [
            zk::Error::NoNode,
            zk::Error::NodeExists,
            zk::Error::BadVersion,
            zk::Error::NotEmpty,
            zk::Error::NoAuth,
            zk::Error::NoChildrenForEphemerals,
            zk::Error::InvalidAcl,
            zk::Error::QuotaExceeded,
            zk::Error::MarshallingError,
        ] {
            let error = of_operation("/a/b", refusal);
            assert!(error.to_string().starts_with("/a/b: "), "{error}");
            assert!(!error.is_lost() && error != Error::Expired, "{error}");
        }
    }
}
