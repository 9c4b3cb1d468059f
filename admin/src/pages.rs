//! Answers that the pages of all programs share.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// Answers an orchestrator: 200 if there are no problems, else 503, with a line for each problem. Lists remarks in both
/// cases.
#[must_use]
pub fn verdict(problems: &[String], remarks: &[String]) -> (StatusCode, String) {
    let (code, mut body) = match problems {
        [] => (StatusCode::OK, "ok\n".to_owned()),
        _ => (StatusCode::SERVICE_UNAVAILABLE, String::new()),
    };
    for line in problems.iter().chain(remarks) {
        body += line;
        body.push('\n');
    }
    (code, body)
}

/// Answers with a registry's metrics in OpenMetrics' text format, or 500 if one cannot be gathered.
pub async fn metrics(registry: Arc<Registry>) -> Response {
    // Reading the kernel's counters takes system calls, and may wait for a table to be applied.
    let encoded = tokio::task::spawn_blocking(move || {
        let mut body = String::new();
        text::encode(&mut body, &registry).map(|()| body)
    });
    match encoded.await {
        Ok(Ok(body)) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], body).into_response()
        }
        Ok(Err(_)) | Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be gathered\n").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_has_a_line_for_each_problem_and_remark() {
        let (problem, remark) = (["a real is down".to_owned()], ["a restart waits".to_owned()]);
        assert_eq!(verdict(&[], &remark), (StatusCode::OK, "ok\na restart waits\n".to_owned()));
        let refused = "a real is down\na restart waits\n".to_owned();
        assert_eq!(verdict(&problem, &remark), (StatusCode::SERVICE_UNAVAILABLE, refused));
    }
}
