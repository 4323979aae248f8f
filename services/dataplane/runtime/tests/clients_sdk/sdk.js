// Dapr's JavaScript SDK against the runtime, by HTTP or gRPC: state, publish, subscribe, bindings,
// secrets, locks, configuration,
// invocation, metadata. Its server takes HTTP in both cases.
const assert = require("node:assert/strict");
const { inspect } = require("node:util");
const { DaprClient, DaprServer, CommunicationProtocolEnum, HttpMethod } = require("@dapr/dapr");

const protocol = process.argv[2] === "grpc" ? CommunicationProtocolEnum.GRPC : CommunicationProtocolEnum.HTTP;
const daprPort = process.argv[2] === "grpc" ? process.env.DAPR_GRPC_PORT : process.env.DAPR_HTTP_PORT;

function check(what, seen, wanted) {
  assert.deepEqual(seen, wanted, what);
  console.log(`ok ${what}`);
}

async function refused(what, call, text) {
  let error;
  try {
    const answer = await call();
    // Some calls of the SDK answer their error.
    error = answer && answer.error;
  } catch (thrown) {
    error = thrown;
  }
  assert.ok(error, `${what}: no error`);
  assert.ok(inspect(error).includes(text), `${what}: ${inspect(error)}`);
  console.log(`ok ${what}`);
}

// What waits until somebody puts something in.
class Queue {
  constructor() {
    this.items = [];
    this.waiting = [];
  }
  put(item) {
    const next = this.waiting.shift();
    next ? next(item) : this.items.push(item);
  }
  get() {
    return this.items.length ? Promise.resolve(this.items.shift()) : new Promise((done) => this.waiting.push(done));
  }
}

async function main() {
  const events = new Queue();
  const ticks = new Queue();
  const http = { daprHost: "127.0.0.1", daprPort: process.env.DAPR_HTTP_PORT };
  const server = new DaprServer({ serverHost: "127.0.0.1", serverPort: process.env.APP_PORT, clientOptions: http });
  await server.pubsub.subscribe("bus", "orders", async (data) => events.put(data));
  await server.binding.receive("tick", async () => ticks.put(true));
  await server.start();

  const client = new DaprClient({ daprHost: "127.0.0.1", daprPort, communicationProtocol: protocol });
  const { state, pubsub, binding, invoker, metadata } = client;
  check("health", await client.health.isHealthy(), true);

  await state.save("store", [{ key: "a", value: { n: 1 } }, { key: "b", value: "text" }]);
  check("get", await state.get("store", "a"), { n: 1 });
  check("get text", await state.get("store", "b"), "text");
  check("get nothing", await state.get("store", "none"), "");
  check("another store", await state.get("other", "a"), "");
  const bulk = await state.getBulk("store", ["b", "a"]);
  check("bulk", bulk.map((item) => [item.key, item.data]), [["b", "text"], ["a", { n: 1 }]]);
  const etag = bulk[1].etag;
  await state.save("store", [{ key: "a", value: 2, etag }]);
  await refused("a stale etag", () => state.save("store", [{ key: "a", value: 3, etag }]), "possible etag mismatch");
  check("it is as it was", await state.get("store", "a"), 2);
  await state.transaction("store", [
    { operation: "upsert", request: { key: "c", value: "5" } },
    { operation: "delete", request: { key: "b" } },
  ]);
  check("transaction", [await state.get("store", "c"), await state.get("store", "b")].map(String), ["5", ""]);
  await state.delete("store", "c");
  check("delete", await state.get("store", "c"), "");
  await refused("no such store", () => state.get("nowhere", "a"), "state store nowhere is not found");

  check("an event of the binding", await ticks.get(), true);
  for (;;) {
    const told = await server.client.metadata.get();
    if (told.subscriptions?.some((s) => s.topic === "orders")) break;
    await new Promise((again) => setTimeout(again, 20));
  }
  await pubsub.publish("bus", "orders", { id: 7 });
  check("an event", await events.get(), { id: 7 });
  await pubsub.publish("bus", "orders", "plain");
  check("an event of text", await events.get(), "plain");
  const failed = await pubsub.publishBulk("bus", "orders", [{ n: 1 }, { n: 2 }]);
  check("a bulk", failed.failedMessages, []);
  check("its events", [await events.get(), await events.get()], [{ n: 1 }, { n: 2 }]);
  await refused("no such broker", () => pubsub.publish("nowhere", "orders", "x"), "pubsub nowhere is not found");

  await binding.send("files", "create", "hello, file", { fileName: "a.txt" });
  const read = await binding.send("files", "get", "", { fileName: "a.txt" });
  // By gRPC the SDK answers bytes and what came with them.
  check("a file", read.data ? Buffer.from(read.data).toString() : String(read), "hello, file");
  await refused("no such operation", () => binding.send("files", "shred", ""), "does not support operation shred");

  check("a secret", await client.secret.get("env", "PASSWORD"), { PASSWORD: "p4ss" });
  const secrets = await client.secret.getBulk("env");
  check("all secrets", secrets, { PASSWORD: { PASSWORD: "p4ss" }, USER: { USER: "me" } });
  await refused("no such secret store", () => client.secret.get("nowhere", "a"), "failed finding secret store");
  const lock = (owner) => client.lock.lock("locks", "r", owner, 60);
  check("a lock", await lock("me"), { success: true });
  check("a lock that is held", await lock("you"), { success: false });
  const status = async (owner) => (await client.lock.unlock("locks", "r", owner)).status;
  check("unlocked", [await status("you"), await status("me"), await status("me")], [2, 0, 1]);
  if (protocol === CommunicationProtocolEnum.GRPC) {
    const got = (await client.configuration.get("conf", ["colour"])).items;
    check("configuration", [got.colour.value, got.colour.version], ["blue", "v1"]);
    const changes = new Queue();
    const watch = await client.configuration.subscribeWithKeys("conf", ["limit"], async (told) => changes.put(told));
    const change = await changes.get();
    check("a change", [Object.keys(change.items), /^[0-9]+$/.test(change.items.limit.value)], [["limit"], true]);
    await watch.stop();
  }

  check("a call", await invoker.invoke("scorer", "score", HttpMethod.POST, { value: 7 }), { score: 14 });
  check("a call without a body", await invoker.invoke("scorer", "score", HttpMethod.GET), { score: 7 });
  const told = await metadata.get();
  check("metadata", told.id, "app");
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
