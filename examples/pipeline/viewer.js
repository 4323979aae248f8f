// Shows what was scored, with Dapr's own JavaScript SDK, unmodified; it knows nothing of Weft.
//
// The first time that it sees r-3 it asks for it again. Usage: viewer.js <port>
const { DaprServer, DaprPubSubStatusEnum, HttpMethod } = require("@dapr/dapr");

const server = new DaprServer({ serverHost: "127.0.0.1", serverPort: process.argv[2] });
const seen = [];
let again = 0;

async function main() {
  await server.pubsub.subscribeWithOptions("bus", "scored", {
    callback: async (reading) => {
      if (reading.id === "r-3" && again === 0) {
        again += 1;
        return DaprPubSubStatusEnum.RETRY;
      }
      seen.push(reading);
      await server.client.state.save("views", [{ key: reading.id, value: reading.score }]);
    },
  });
  await server.invoker.listen("seen", async () => ({ seen, again }), { method: HttpMethod.GET });
  await server.start();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
