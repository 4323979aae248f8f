"""The head of the pipeline, with Dapr's own Python SDK, unmodified; it knows nothing of Weft.

Each event of the input binding `tick` is a measurement: it is saved (state store `readings`), scored
by app `scorer`, archived as a file (output binding `archive`) and published (`scored` of `bus`).

Usage: ingest.py <port>
"""

import json
import sys

import uvicorn
from dapr.clients import DaprClient
from fastapi import FastAPI, Request

app = FastAPI()
count = 0
client = None


def dapr() -> DaprClient:
    """One SDK client: making one costs two health checks."""
    global client
    if client is None:
        client = DaprClient()
    return client


@app.post("/tick")
def tick(request: Request):
    global count
    # One that could not be taken all the way is taken again with the next event.
    number = count + 1
    reading = {"id": f"r-{number}", "value": number * 7 % 100, "at": request.headers["readtimeutc"]}
    dapr().save_state("readings", reading["id"], json.dumps(reading))
    scored = dapr().invoke_method(
        "scorer", "score", data=json.dumps(reading), http_verb="POST", content_type="application/json"
    )
    scored = json.loads(scored.data)
    name = {"fileName": f"{reading['id']}.json"}
    dapr().invoke_binding("archive", "create", json.dumps(scored), name)
    dapr().publish_event("bus", "scored", json.dumps(scored), data_content_type="application/json")
    count = number
    return {}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
