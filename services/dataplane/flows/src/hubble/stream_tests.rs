use super::*;
use crate::{Flow as Recordable, hubble::convert::tests::observer, sample::flow_of};
use weft_proto::hubble::flow::{self as pb, FlowFilter};

/// Requests with these statuses, a second between them; each is two events.
fn log_of(statuses: impl IntoIterator<Item = u16>) -> FlowLog {
    let log = FlowLog::with_capacity("n1", 16);
    statuses.into_iter().for_each(|s| log.record(numbered(s)));
    log
}

fn numbered(status: u16) -> Recordable {
    let base = flow_of("shop", "cart");
    Recordable {
        time: base.time + Duration::from_secs(status.into()),
        status,
        ..base
    }
}

fn answers() -> GetFlowsRequest {
    GetFlowsRequest {
        whitelist: vec![FlowFilter {
            reply: vec![true],
            ..Default::default()
        }],
        ..Default::default()
    }
}

async fn stream(log: &FlowLog, request: &GetFlowsRequest) -> Stream {
    Stream::new(log, observer(), Query::new(request).unwrap()).await
}

fn code(response: &GetFlowsResponse) -> Result<u32, u64> {
    match response.response_types.as_ref().unwrap() {
        ResponseTypes::Flow(flow) => match flow.l7.as_ref().unwrap().record.as_ref().unwrap() {
            pb::layer7::Record::Http(http) => Ok(http.code),
            pb::layer7::Record::Dns(_) => unreachable!(),
        },
        ResponseTypes::LostEvents(lost) => Err(lost.num_events_lost),
        ResponseTypes::NodeStatus(_) => unreachable!(),
    }
}

async fn codes(log: &FlowLog, request: &GetFlowsRequest) -> Vec<Result<u32, u64>> {
    let mut stream = stream(log, request).await;
    let mut codes = Vec::new();
    while let Some(response) = stream.next().await {
        codes.push(code(&response));
    }
    codes
}

#[tokio::test]
async fn numbers_count_what_matches_from_either_end() {
    let log = log_of(200..210);
    let ok = |r: std::ops::Range<u32>| r.map(Ok).collect::<Vec<_>>();
    assert_eq!(codes(&log, &answers()).await, ok(200..210));
    let last = GetFlowsRequest {
        number: 3,
        ..answers()
    };
    assert_eq!(codes(&log, &last).await, ok(207..210));
    let first = GetFlowsRequest {
        first: true,
        ..last.clone()
    };
    assert_eq!(codes(&log, &first).await, ok(200..203));
    // Without a filter the last three are an answer, a request and an answer.
    let all = GetFlowsRequest {
        number: 3,
        ..Default::default()
    };
    assert_eq!(codes(&log, &all).await, [Ok(208), Ok(0), Ok(209)]);
    let more = GetFlowsRequest {
        number: 100,
        ..answers()
    };
    assert_eq!(codes(&log, &more).await.len(), 10);
    let nothing = GetFlowsRequest {
        blacklist: answers().whitelist,
        ..answers()
    };
    assert_eq!(codes(&log, &nothing).await, []);
}

#[tokio::test]
async fn times_are_bounds_on_both_sides() {
    let log = log_of(200..210);
    let base = flow_of("a", "b").time;
    let at = |s: u64| Some((base + Duration::from_secs(s)).into());
    let between = GetFlowsRequest {
        since: at(203),
        until: at(206),
        ..answers()
    };
    // An answer comes a millisecond after its request.
    assert_eq!(codes(&log, &between).await, [Ok(203), Ok(204), Ok(205)]);
    // `since` goes before `number`, which then counts from there.
    let some = GetFlowsRequest { number: 2, ..between };
    assert_eq!(codes(&log, &some).await, [Ok(203), Ok(204)]);
}

#[tokio::test]
async fn past_and_new_are_joined_without_gap_or_repeat() {
    let log = log_of(200..205);
    let request = GetFlowsRequest {
        number: 2,
        follow: true,
        ..answers()
    };
    let mut stream = stream(&log, &request).await;
    log.record(numbered(205));
    for expected in 203..206 {
        assert_eq!(code(&stream.next().await.unwrap()), Ok(expected));
    }
    let reader = tokio::spawn(async move { stream.next().await });
    tokio::task::yield_now().await;
    log.record(numbered(206));
    assert_eq!(code(&reader.await.unwrap().unwrap()), Ok(206));

    let only_new = GetFlowsRequest {
        follow: true,
        ..answers()
    };
    let mut stream = self::stream(&log, &only_new).await;
    log.record(numbered(207));
    assert_eq!(code(&stream.next().await.unwrap()), Ok(207));
}

#[tokio::test]
async fn following_ends_after_its_time() {
    let log = log_of(200..202);
    let until = flow_of("a", "b").time + Duration::from_secs(203);
    let request = GetFlowsRequest {
        follow: true,
        until: Some(until.into()),
        ..answers()
    };
    let mut stream = stream(&log, &request).await;
    log.record(numbered(202));
    log.record(numbered(204));
    assert_eq!(code(&stream.next().await.unwrap()), Ok(202));
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn what_the_ring_took_back_is_told_and_holds_nobody_up() {
    let log = log_of(100..110);
    let mut stream = stream(&log, &answers()).await;
    (110..136).for_each(|s| log.record(numbered(s)));
    // It was to read ten, of which none is held any more.
    let mut told = Vec::new();
    while let Some(response) = stream.next().await {
        told.push(code(&response));
    }
    assert_eq!(told, [Err(20)]);
    assert_eq!(log.overwritten(), 20);

    let request = GetFlowsRequest {
        follow: true,
        ..answers()
    };
    let mut stream = self::stream(&log, &request).await;
    log.record_lost(4);
    assert_eq!(code(&stream.next().await.unwrap()), Err(4));
}

#[tokio::test]
async fn only_masked_fields_are_sent() {
    let log = log_of([200]);
    for is_old in [false, true] {
        let mask = Some(prost_types::FieldMask {
            paths: vec!["verdict".into(), "source.pod_name".into()],
        });
        let mut request = GetFlowsRequest {
            number: 1,
            ..Default::default()
        };
        if is_old {
            request.experimental =
                Some(weft_proto::hubble::observer::get_flows_request::Experimental { field_mask: mask });
        } else {
            request.field_mask = mask;
        }
        let mut stream = stream(&log, &request).await;
        let response = stream.next().await.unwrap();
        assert!(response.time.is_some() && response.node_name == "n1");
        let Some(ResponseTypes::Flow(flow)) = response.response_types else {
            panic!("no flow")
        };
        let expected = Flow {
            verdict: pb::Verdict::Forwarded.into(),
            source: Some(pb::Endpoint {
                pod_name: "cart-1".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(flow, expected);
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let both = GetFlowsRequest {
        first: true,
        follow: true,
        ..Default::default()
    };
    assert!(matches!(Query::new(&both), Err(QueryError::FirstAndFollow)));
    let time = GetFlowsRequest {
        since: Some(prost_types::Timestamp {
            seconds: 253_402_300_800,
            nanos: 0,
        }),
        ..Default::default()
    };
    assert!(matches!(Query::new(&time), Err(QueryError::Time("since"))));
}

#[test]
fn the_rate_is_of_the_last_minute() {
    let log = log_of([]);
    let now = SystemTime::now();
    assert_eq!(flow_rate(&log, now), 0.0);
    for age in [90, 70, 30, 20, 10] {
        log.record(Recordable {
            time: now - Duration::from_secs(age),
            ..flow_of("a", "b")
        });
    }
    assert_eq!(flow_rate(&log, now), 3.0 / 60.0);
    // A full log tells of the time since its oldest.
    (0..16).for_each(|_| {
        log.record(Recordable {
            time: now - Duration::from_secs(4),
            ..flow_of("a", "b")
        })
    });
    assert_eq!(flow_rate(&log, now), 4.0);
}
