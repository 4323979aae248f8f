"""Apps and clients of the stock libraries (grpcio, aiohttp). Clients print one JSON line per thing they learnt."""
import asyncio
import json
import sys
import time
from concurrent import futures

import aiohttp
import grpc
from aiohttp import web


def show(what):
    print(json.dumps(what), flush=True)


class Calls(grpc.GenericRpcHandler):
    """Any service: what a method does is told by its name."""

    def __init__(self, name):
        self.name = name.encode()

    def service(self, details):
        method = details.method.rsplit("/", 1)[1]
        if method == "Watch":
            return grpc.unary_stream_rpc_method_handler(self.watch)
        if method == "Chat":
            return grpc.stream_stream_rpc_method_handler(self.chat)
        if method == "Fail":
            return grpc.unary_unary_rpc_method_handler(self.fail)
        return grpc.unary_unary_rpc_method_handler(self.unary)

    def unary(self, message, context):
        context.set_trailing_metadata((("served-by", self.name.decode()),))
        return self.name + b" " + message

    def watch(self, message, context):
        for number in range(3):
            yield self.name + b" %d " % number + message

    def chat(self, messages, context):
        for message in messages:
            yield self.name + b" " + message

    def fail(self, message, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "no such cart")


def serve_grpc(name, port):
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((Calls(name),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def call(channel, what):
    """`<kind> <path> <count> [<header>=<value>]`; answers what was said, or the code of the failure."""
    kind, path, count, *metadata = what.split(" ")
    options = {"metadata": tuple(tuple(m.split("=", 1)) for m in metadata), "timeout": 20}
    said = []
    try:
        if kind == "unary":
            method = channel.unary_unary(path)
            for number in range(int(count)):
                answer, ended = method.with_call(b"%d" % number, **options)
                trailing = dict(ended.trailing_metadata())
                assert trailing.get("served-by", "").encode() == answer.split(b" ")[0], trailing
                said.append(answer.decode())
        elif kind == "watch":
            said = [m.decode() for m in channel.unary_stream(path)(b"w", **options)]
        elif kind == "chat":
            # Each message is sent when the one before has been answered.
            answered = [futures.Future() for _ in range(int(count))]

            def messages():
                for number in range(int(count)):
                    if number:
                        answered[number - 1].result(20)
                    yield b"%d" % number

            for number, message in enumerate(channel.stream_stream(path)(messages(), **options)):
                said.append(message.decode())
                answered[number].set_result(None)
    except grpc.RpcError as error:
        return {"said": said, "code": error.code().name, "details": error.details()}
    return {"said": said, "code": "OK"}


def call_grpc(target, host, *calls):
    with grpc.insecure_channel(target, options=[("grpc.default_authority", host)]) as channel:
        for what in calls:
            show(call(channel, what))


def serve_ws(name, port):
    async def socket(request):
        answer = web.WebSocketResponse(max_msg_size=1 << 20)
        await answer.prepare(request)
        async for message in answer:
            if message.type == aiohttp.WSMsgType.TEXT:
                await answer.send_str(f"{name} {message.data}")
            elif message.type == aiohttp.WSMsgType.BINARY:
                await answer.send_bytes(message.data[::-1])
        return answer

    async def plain(request):
        return web.Response(text=f"{name} {request.path_qs}")

    app = web.Application()
    app.router.add_get("/ws", socket)
    app.router.add_get("/{rest:.*}", plain)
    web.run_app(app, host="0.0.0.0", port=int(port), print=None, access_log=None)


async def talk(target, host, stay):
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        try:
            socket = await session.ws_connect(f"ws://{target}/ws", headers={"Host": host}, heartbeat=5)
        except aiohttp.WSServerHandshakeError as error:
            return show({"refused": error.status})
        except aiohttp.ClientError as error:
            return show({"refused": 0, "why": str(error)})
        said = []
        for number in range(3):
            await socket.send_str(f"hello {number}")
            said.append(await socket.receive_str(timeout=20))
        large = bytes(range(256)) * 1024
        await socket.send_bytes(large)
        back = await socket.receive_bytes(timeout=20)
        show({"said": said, "large": back == large[::-1]})
        if stay:
            # Until somebody ends it.
            began = time.monotonic()
            message = await socket.receive(timeout=60)
            return show({"ended": message.type.name, "answers": time.monotonic() - began < 50})
        await socket.close()


mode, *rest = sys.argv[1:]
if mode == "serve-grpc":
    serve_grpc(*rest)
elif mode == "serve-ws":
    serve_ws(*rest)
elif mode == "grpc":
    call_grpc(*rest)
elif mode == "ws":
    asyncio.run(talk(*rest[:2], stay=rest[2:] == ["stay"]))
