"""Speaks as a shared app by the stock SDK of Dapr: prints one JSON line with what it was told."""
import json
import os
import sys

http, target = sys.argv[1:]
os.environ["DAPR_HTTP_ENDPOINT"] = f"http://{http}"
os.environ["DAPR_HEALTH_TIMEOUT"] = "3"
# Read when it is imported.
from dapr.clients import DaprClient  # noqa: E402
from dapr.proto import api_v1 as runtime, common_v1 as common  # noqa: E402
import grpc  # noqa: E402

told = {}
try:
    with DaprClient(address=target) as dapr:
        told["app_id"] = dapr.get_metadata().application_id
        dapr.save_state("store", "key", "value")
        told["state"] = dapr.get_state("store", "key").text()
        told["answer"] = dapr.invoke_method("whoami", "x?y=1", data=b"", http_verb="GET").text()
        message = common.InvokeRequest(
            method="x", http_extension=common.HTTPExtension(verb=common.HTTPExtension.GET, querystring="y=1")
        )
        forged = (("dapr-caller-app-id", "admin"), ("x-forwarded-for", "1.2.3.4"))
        asked = runtime.InvokeServiceRequest(id="whoami", message=message)
        told["by_grpc"] = dapr._stub.InvokeService(asked, metadata=forged).data.value.decode()
        try:
            dapr.get_state("none", "key")
        except grpc.RpcError as error:
            told["none"] = error.code().name
except grpc.RpcError as error:
    told["refused"] = error.code().name
except Exception as error:  # The SDK gives up by several.
    told["refused"] = repr(error)
print(json.dumps(told), flush=True)
