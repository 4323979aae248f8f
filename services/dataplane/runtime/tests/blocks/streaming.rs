//! Subscriptions that an app opens by a stream.

use crate::{
    grpc::client,
    stage::{App, Stage, until},
    world::{get, send},
};
use futures::channel::mpsc::{UnboundedSender, unbounded};
use serde_json::json;
use tonic::{Code, Status, Streaming};
use weft_flows::Kind;
use weft_proto::dapr::runtime::v1::{
    self as pb, subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType as Asked,
    subscribe_topic_events_response_alpha1::SubscribeTopicEventsResponseType as Told,
    topic_event_response::TopicEventResponseStatus as Said,
};

type Ask = UnboundedSender<pb::SubscribeTopicEventsRequestAlpha1>;

fn request(asked: Asked) -> pb::SubscribeTopicEventsRequestAlpha1 {
    pb::SubscribeTopicEventsRequestAlpha1 {
        subscribe_topic_events_request_type: Some(asked),
    }
}

fn initial(pubsub: &str, topic: &str) -> Asked {
    Asked::InitialRequest(pb::SubscribeTopicEventsRequestInitialAlpha1 {
        pubsub_name: pubsub.into(),
        topic: topic.into(),
        dead_letter_topic: Some("dead".into()),
        ..Default::default()
    })
}

struct Stream {
    ask: Ask,
    told: Streaming<pb::SubscribeTopicEventsResponseAlpha1>,
}

impl Stream {
    async fn open(app: &crate::world::Workload, first: Asked) -> Result<Self, Status> {
        let (ask, asked) = unbounded();
        ask.unbounded_send(request(first)).unwrap();
        let told = client(app)
            .await
            .subscribe_topic_events_alpha1(asked)
            .await?
            .into_inner();
        Ok(Self { ask, told })
    }

    async fn next(&mut self) -> Told {
        let told = tokio::time::timeout(crate::world::SOON, self.told.message())
            .await
            .unwrap();
        told.unwrap()
            .unwrap()
            .subscribe_topic_events_response_type
            .unwrap()
    }

    async fn event(&mut self) -> pb::TopicEventRequest {
        match self.next().await {
            Told::EventMessage(event) => event,
            other => panic!("{other:?}"),
        }
    }

    fn answer(&self, id: &str, status: Said) {
        let done = pb::SubscribeTopicEventsRequestProcessedAlpha1 {
            id: id.into(),
            status: Some(pb::TopicEventResponse {
                status: status.into(),
            }),
        };
        self.ask
            .unbounded_send(request(Asked::EventProcessed(done)))
            .unwrap();
    }
}

#[tokio::test]
async fn messages_come_by_a_stream_and_their_answers_go_by_it() {
    let stage = Stage::new();
    stage.component("bus", "pubsub.in-memory", &[("protectedTopics", "secret")], &[]);
    let app = App::new(&[]).await;
    let (viewer, shop) = (stage.app("viewer", &app).await, stage.app("shop", &app).await);
    let mut stream = Stream::open(&viewer, initial("bus", "orders")).await.unwrap();
    assert!(matches!(stream.next().await, Told::InitialResponse(_)));
    let subscribed = async || get(viewer.api, "/v1.0/metadata", "").await.json()["subscriptions"].clone();
    let told = subscribed().await;
    assert_eq!(
        (&told[0]["topic"], &told[0]["type"]),
        (&json!("orders"), &json!("STREAMING"))
    );

    let json = "content-type: application/json\r\n";
    let publish = async |body: &str| send(shop.api, "POST", "/v1.0/publish/bus/orders", json, body).await;
    assert_eq!(publish("{\"id\":7}").await.status, 204);
    let event = stream.event().await;
    assert_eq!(
        (event.data.as_slice(), event.data_content_type.as_str()),
        (b"{\"id\":7}".as_ref(), "application/json")
    );
    assert_eq!(
        (
            event.topic.as_str(),
            event.pubsub_name.as_str(),
            event.path.as_str()
        ),
        ("orders", "bus", "/")
    );
    assert_eq!(
        (event.source.as_str(), event.spec_version.as_str()),
        ("shop", "1.0")
    );
    assert!(event.extensions.unwrap().fields.contains_key("traceparent"));
    // An answer to what it does not have is nothing; RETRY brings it again.
    stream.answer("nothing", Said::Success);
    let (mut dead, id) = (
        Stream::open(&viewer, initial("bus", "dead")).await.unwrap(),
        event.id,
    );
    dead.next().await;
    stream.answer(&id, Said::Retry);
    // With a dead-letter topic that is where it goes.
    assert_eq!(dead.event().await.id, id);
    assert_eq!(publish("{\"id\":8}").await.status, 204);
    let event = stream.event().await;
    assert_eq!(event.data, b"{\"id\":8}");
    stream.answer(&event.id, Said::Success);
    let flows = || stage.agent.flows();
    until("the flow", || async {
        flows().iter().any(|f| f.kind == Kind::Deliver && f.status == 200)
    })
    .await;

    // Held when the stream ends, it comes by the next one.
    assert_eq!(publish("{\"id\":9}").await.status, 204);
    assert_eq!(stream.event().await.data, b"{\"id\":9}");
    let (mut next, _first) = (
        Stream::open(&viewer, initial("bus", "orders")).await.unwrap(),
        stream.ask.close_channel(),
    );
    next.next().await;
    assert_eq!(next.event().await.data, b"{\"id\":9}");
    drop((next, dead, stream));
    until("their end", || async { subscribed().await == json!([]) }).await;
}

#[tokio::test]
async fn a_stream_that_can_not_be_says_why() {
    let stage = Stage::new();
    stage.component("bus", "pubsub.in-memory", &[("protectedTopics", "secret")], &[]);
    let app = App::new(&[]).await;
    let viewer = stage.app("viewer", &app).await;
    let done = Asked::EventProcessed(pb::SubscribeTopicEventsRequestProcessedAlpha1::default());
    for (first, code, message) in [
        (done, Code::Unknown, "initial request is required"),
        (initial("", "orders"), Code::Unknown, "pubsubName is required"),
        (initial("bus", ""), Code::Unknown, "topic is required"),
        (
            initial("none", "orders"),
            Code::InvalidArgument,
            "pubsub none is not found",
        ),
        (
            initial("bus", "secret"),
            Code::PermissionDenied,
            "topic secret is not allowed for app id viewer",
        ),
    ] {
        let refused = Stream::open(&viewer, first).await.err().unwrap();
        assert_eq!((refused.code(), refused.message()), (code, message));
    }
    assert!(Stream::open(&viewer, initial("bus", "orders")).await.is_ok());
}
