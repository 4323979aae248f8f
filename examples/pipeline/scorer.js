// Scores readings, with Dapr's own JavaScript SDK, unmodified; it knows nothing of Weft.
//
// Usage: scorer.js <port>
const { DaprServer, HttpMethod } = require("@dapr/dapr");

const server = new DaprServer({ serverHost: "127.0.0.1", serverPort: process.argv[2] });

async function main() {
  await server.invoker.listen(
    "score",
    async (call) => {
      const reading = typeof call.body === "string" ? JSON.parse(call.body) : call.body;
      const caller = call.headers["dapr-caller-app-id"];
      return { ...reading, score: reading.value * 2, caller };
    },
    { method: HttpMethod.POST },
  );
  await server.start();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
