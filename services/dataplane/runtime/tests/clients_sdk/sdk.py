"""Dapr's Python SDK against the runtime: state, publish, subscribe, bindings, secrets, configuration, locks,
invocation, metadata."""

import json
import os
import queue
import threading
import time
import urllib.request

import grpc
import uvicorn
from dapr.clients import DaprClient
from dapr.clients.grpc._request import TransactionalStateOperation, TransactionOperationType
from dapr.clients.grpc._state import Concurrency, Consistency, StateItem, StateOptions
from dapr.ext.fastapi import DaprApp
from fastapi import Body, FastAPI

app = FastAPI()
dapr_app = DaprApp(app)
events, ticks = queue.Queue(), queue.Queue()


@dapr_app.subscribe(pubsub="bus", topic="orders", route="/on-order")
def on_order(event=Body()):
    events.put(event)
    return {"status": "SUCCESS"}


@app.post("/tick")
def on_tick():
    ticks.put(True)
    return {}


def check(what, seen, wanted):
    if seen != wanted:
        print(f"FAIL {what}: {seen!r}, wanted {wanted!r}", flush=True)
        os._exit(1)
    print(f"ok {what}", flush=True)


def requests_json(url):
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def refused(what, call, code, message):
    try:
        call()
    except grpc.RpcError as error:
        check(what, (error.code(), message in error.details()), (code, True))
    else:
        check(what, "no error", code)


server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=int(os.environ["APP_PORT"]), log_level="error"))
threading.Thread(target=server.run, daemon=True).start()

with DaprClient() as dapr:
    dapr.save_state("store", "a", json.dumps({"n": 1}))
    got = dapr.get_state("store", "a")
    check("get", json.loads(got.data), {"n": 1})
    check("get nothing", dapr.get_state("store", "none").data, b"")
    check("another store", dapr.get_state("other", "a").data, b"")
    dapr.save_state("store", "a", "two", etag=got.etag)
    refused(
        "a stale etag",
        lambda: dapr.save_state("store", "a", "three", etag=got.etag),
        grpc.StatusCode.ABORTED,
        "failed saving state in state store store: possible etag mismatch",
    )
    first = StateOptions(consistency=Consistency.strong, concurrency=Concurrency.first_write)
    refused(
        "first write wins",
        lambda: dapr.save_state("store", "a", "four", options=first),
        grpc.StatusCode.ABORTED,
        "item already exists and no etag was passed",
    )
    dapr.save_bulk_state("store", [StateItem("b", "1"), StateItem("c", "2", metadata={"ttlInSeconds": "100"})])
    bulk = dapr.get_bulk_state("store", ["b", "none", "c"]).items
    check("bulk", [(i.key, i.data) for i in bulk], [("b", b"1"), ("none", b""), ("c", b"2")])
    upsert, delete = TransactionOperationType.upsert, TransactionOperationType.delete
    dapr.execute_state_transaction(
        "store",
        [
            TransactionalStateOperation(key="d", data="5", operation_type=upsert),
            TransactionalStateOperation(key="b", data="", operation_type=delete),
        ],
    )
    check("transaction", [dapr.get_state("store", k).data for k in "db"], [b"5", b""])
    dapr.delete_state("store", "d")
    check("delete", dapr.get_state("store", "d").data, b"")
    refused(
        "no such store",
        lambda: dapr.get_state("nowhere", "a"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "state store nowhere is not found",
    )
    refused(
        "a key of another app",
        lambda: dapr.get_state("store", "scorer||a"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "input key/keyPrefix 'scorer||a' can't contain '||'",
    )

    check("an event of the binding", ticks.get(timeout=30), True)
    # The SDK does not tell subscriptions; the API does.
    told = lambda: requests_json(f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0/metadata")
    while not any(s["topic"] == "orders" for s in told()["subscriptions"]):
        time.sleep(0.02)
    dapr.publish_event("bus", "orders", json.dumps({"id": 7}), data_content_type="application/json")
    event = events.get(timeout=30)
    check("an event", (event["data"], event["source"], event["topic"]), ({"id": 7}, "app", "orders"))
    dapr.publish_event("bus", "orders", "plain", publish_metadata={"cloudevent.id": "mine", "cloudevent.type": "t"})
    event = events.get(timeout=30)
    check("its attributes", (event["data"], event["id"], event["type"]), ("plain", "mine", "t"))
    dapr.publish_events("bus", "orders", ["one", "two"])
    check("a bulk", [events.get(timeout=30)["data"] for _ in range(2)], ["one", "two"])
    refused(
        "no such broker",
        lambda: dapr.publish_event("nowhere", "orders", "x"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "pubsub nowhere is not found",
    )

    made = dapr.invoke_binding("files", "create", json.dumps("hello, file"), {"fileName": "a.txt"})
    check("a file", json.loads(made.data), {"fileName": "a.txt"})
    check("its content", dapr.invoke_binding("files", "get", "", {"fileName": "a.txt"}).data, b"hello, file")
    refused(
        "no such operation",
        lambda: dapr.invoke_binding("files", "shred", ""),
        grpc.StatusCode.INTERNAL,
        "binding files does not support operation shred",
    )

    # By a stream, without a path of the app's.
    stream = dapr.subscribe("bus", "streamed")
    dapr.publish_event("bus", "streamed", json.dumps({"id": 8}), data_content_type="application/json")
    message = stream.next_message()
    check("an event of a stream", (message.data(), message.topic(), message.source()), ({"id": 8}, "streamed", "app"))
    stream.respond_success(message)
    dapr.publish_event("bus", "streamed", "plain", data_content_type="text/plain")
    message = stream.next_message()
    check("its text", message.data(), "plain")
    stream.respond_success(message)
    stream.close()

    check("a secret", dapr.get_secret("env", "PASSWORD").secret, {"PASSWORD": "p4ss"})
    secrets = dapr.get_bulk_secret("env").secrets
    check("all secrets", secrets, {"PASSWORD": {"PASSWORD": "p4ss"}, "USER": {"USER": "me"}})
    refused(
        "no such secret store",
        lambda: dapr.get_secret("nowhere", "a"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "failed finding secret store with key nowhere",
    )
    colour = dapr.get_configuration("conf", ["colour", "none"]).items
    check("configuration", {k: (v.value, v.version) for k, v in colour.items()}, {"colour": ("blue", "v1")})
    changes = queue.Queue()
    watch = dapr.subscribe_configuration("conf", ["limit"], lambda id, told: changes.put((id, told.items)))
    id, change = changes.get(timeout=30)
    check("a change", (id, sorted(change), change["limit"].value.isdigit()), (watch, ["limit"], True))
    check("its end", dapr.unsubscribe_configuration("conf", watch), True)

    check("a lock", dapr.try_lock("locks", "r", "me", 60).success, True)
    check("a lock that is held", dapr.try_lock("locks", "r", "you", 60).success, False)
    check("of others", dapr.unlock("locks", "r", "you").status.name, "lock_belongs_to_others")
    check("unlocked", dapr.unlock("locks", "r", "me").status.name, "success")
    check("unlocked already", dapr.unlock("locks", "r", "me").status.name, "lock_does_not_exist")

    answer = dapr.invoke_method("scorer", "score", data=json.dumps({"value": 7}), http_verb="POST")
    check("a call", json.loads(answer.data), {"score": 14})
    dapr.set_metadata("colour", "blue")
    metadata = dapr.get_metadata()
    check("metadata", (metadata.application_id, metadata.extended_metadata["colour"]), ("app", "blue"))
    names = sorted(component.name for component in metadata.registered_components)
    check("components", names, ["bus", "conf", "env", "files", "locks", "other", "store", "tick"])

os._exit(0)
