//! `/capture?vip=…&one_in=…&count=…&seconds=…`: samples of forwarded packets, as a stream of pcapng.
//!
//! All parameters may be left out. A stream is bounded in packets and time, there is one at a time on a node, and it ends
//! soon after its reader does: sampling is on only while the reader takes what comes.

use super::Shown;
use crate::capture;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use dataplane::capture::{Sample, Source, SourceError};
use futures_util::stream;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use zk_schema::VipName;

/// The most packets of one stream.
const MOST_PACKETS: u64 = 1_000_000;
/// The most seconds of one stream.
const MOST_SECONDS: u64 = 600;
/// Pieces that wait for a slow reader, each of at most some 20 KiB.
const WAITING: usize = 8;
/// Time for which a reader may take nothing before its stream ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// The packets to capture.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    vip: Option<VipName>,
    one_in: u32,
    count: u64,
    seconds: u64,
}

impl Wanted {
    fn parse(query: &str) -> Result<Self, String> {
        fn number<T>(key: &str, text: &str, fits: impl Fn(&T) -> bool, allowed: &str) -> Result<T, String>
        where
            T: std::str::FromStr,
        {
            let number = text.parse().ok().filter(fits);
            number.ok_or_else(|| format!("{key}: {text:?} is not {allowed}"))
        }
        let mut wanted = Self { vip: None, one_in: 1, count: 1000, seconds: 60 };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "vip" => wanted.vip = Some(value.parse().map_err(|error| format!("vip: {error}"))?),
                "one_in" => {
                    wanted.one_in = number(key, value, |n: &u32| n.is_power_of_two(), "a power of two")?;
                }
                "count" => {
                    let allowed = format!("in 1..={MOST_PACKETS}");
                    wanted.count = number(key, value, |n| (1..=MOST_PACKETS).contains(n), &allowed)?;
                }
                "seconds" => {
                    let allowed = format!("in 1..={MOST_SECONDS}");
                    wanted.seconds = number(key, value, |n| (1..=MOST_SECONDS).contains(n), &allowed)?;
                }
                _ => {
                    return Err(format!("{key:?} is no parameter: there are vip, one_in, count and seconds"));
                }
            }
        }
        Ok(wanted)
    }
}

/// Answers with a stream.
pub(super) async fn capture(State(shown): State<Shown>, RawQuery(query): RawQuery) -> Response {
    let wanted = match Wanted::parse(query.as_deref().unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(problem) => return (StatusCode::BAD_REQUEST, problem + "\n").into_response(),
    };
    let Some(pins) = shown.pins.clone() else {
        return refusal(&SourceError::Missing(PathBuf::from("the data plane")));
    };
    let source = match Source::open(&pins, wanted.vip.as_ref(), wanted.one_in) {
        Ok(source) => source,
        Err(error) => return refusal(&error),
    };
    let (pieces, taken) = mpsc::channel::<Bytes>(WAITING);
    tokio::spawn(feed(source, wanted, shown, pieces));
    let body = stream::unfold(taken, async |mut taken| {
        let piece = taken.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), taken))
    });
    let body = Body::from_stream(Box::pin(body));
    ([(header::CONTENT_TYPE, "application/x-pcapng")], body).into_response()
}

fn refusal(error: &SourceError) -> Response {
    let code = match error {
        SourceError::Missing(_) => StatusCode::SERVICE_UNAVAILABLE,
        SourceError::UnknownVip(_) => StatusCode::NOT_FOUND,
        SourceError::Busy => StatusCode::CONFLICT,
        SourceError::Other(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (code, format!("{error}\n")).into_response()
}

/// Writes samples until there are enough, the time is up, or nobody reads on.
async fn feed(mut source: Source, wanted: Wanted, shown: Shown, pieces: mpsc::Sender<Bytes>) {
    let end = Instant::now() + Duration::from_secs(wanted.seconds);
    let mut piece = capture::preamble(shown.node.as_str(), wanted.vip.as_ref());
    let mut left = wanted.count;
    loop {
        match timeout(PATIENCE, pieces.send(Bytes::from(piece))).await {
            Ok(Ok(())) if left > 0 => {}
            _ => return,
        }
        let samples = tokio::select! {
            () = pieces.closed() => return,
            samples = timeout_at(end, source.next(usize::try_from(left).unwrap_or(usize::MAX))) => samples,
        };
        let Ok(Ok(samples)) = samples else { return };
        piece = Vec::new();
        for sample in samples {
            left = left.saturating_sub(1);
            let comment = comment(&shown, &source, &sample, wanted.vip.as_ref());
            capture::emit(&sample, comment, &mut piece);
        }
    }
}

/// The real by name, and the VIP too unless it is the one that was asked for.
fn comment(shown: &Shown, source: &Source, sample: &Sample, vip: Option<&VipName>) -> String {
    let status = shown.status.borrow();
    let of = |name: &VipName| {
        let reals = status.vips.get(name).map(|vip| &vip.reals);
        let real = reals.and_then(|reals| reals.iter().find(|(_, real)| real.address == sample.real));
        real.map_or_else(|| format!("real={}", sample.real), |(name, _)| format!("real={name}"))
    };
    match vip {
        Some(vip) => of(vip),
        None => match status.vips.keys().find(|name| source.is_of(sample, name)) {
            Some(name) => format!("vip={name} {}", of(name)),
            None => format!("real={}", sample.real),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::name;

    #[test]
    fn parameters_have_defaults_and_bounds() {
        let default = Wanted { vip: None, one_in: 1, count: 1000, seconds: 60 };
        assert_eq!(Wanted::parse(""), Ok(default.clone()));
        let wanted = Wanted { vip: Some(name("mqtt")), one_in: 64, count: 5, seconds: 600 };
        assert_eq!(Wanted::parse("vip=mqtt&one_in=64&count=5&seconds=600"), Ok(wanted));
        for (query, told) in [
            ("one_in=3", "power of two"),
            ("one_in=0", "power of two"),
            ("count=0", "1..=1000000"),
            ("seconds=601", "1..=600"),
            ("seconds=-1", "1..=600"),
            ("vip=%2e", "vip:"),
            ("secs=1", "no parameter"),
        ] {
            let problem = Wanted::parse(query).unwrap_err();
            assert!(problem.contains(told), "{query}: {problem}");
        }
    }
}
