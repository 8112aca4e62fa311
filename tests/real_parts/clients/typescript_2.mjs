// The client of the TypeScript SDK 2.x.
import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { main, refused, told } from "./steps.mjs";

const LOG_LEVEL = "io.modelcontextprotocol/logLevel";

await main(async ({ command, args, env, mode }, name, seen) => {
  const capabilities = { sampling: {}, elicitation: {}, roots: {} };
  const client = new Client({ name, version: "1" }, { capabilities, versionNegotiation: { mode } });
  client.setRequestHandler("elicitation/create", () => {
    seen.note("asked", "elicitation/create");
    return { action: "accept", content: { name: "Ann" } };
  });
  client.setRequestHandler("sampling/createMessage", () => {
    seen.note("asked", "sampling/createMessage");
    return { role: "assistant", content: { type: "text", text: "sampled" }, model: "none" };
  });
  client.setRequestHandler("roots/list", () => {
    seen.note("asked", "roots/list");
    return { roots: [{ uri: `file://${seen.root}` }] };
  });
  client.setNotificationHandler("notifications/message", ({ params }) => seen.note("logged", params.data));
  client.setNotificationHandler("notifications/resources/updated", ({ params }) => seen.note("updated", params.uri));
  await client.connect(new StdioClientTransport({ command, args, env }));
  const version = client.getNegotiatedProtocolVersion();
  const modern = version >= "2026";
  return {
    version: () => version,
    close: () => client.close(),
    tools: async () => (await client.listTools()).tools.map((tool) => tool.name),
    call: async (name, args, signal) => {
      const onprogress = ({ progress }) => seen.note("progress", progress);
      const params = { name, arguments: args, ...(modern && { _meta: { [LOG_LEVEL]: "debug" } }) };
      return client.callTool(params, { onprogress, signal }).then(told, refused);
    },
    setLevel: async (level) => modern || client.setLoggingLevel(level),
    subscribe: async (uri) => {
      if (modern) {
        const listening = await client.listen({ resourceSubscriptions: [uri] });
        return () => listening.close();
      }
      await client.subscribeResource({ uri });
      return () => client.unsubscribeResource({ uri });
    },
    task: async () => {
      throw new Error("this SDK has no tasks");
    },
  };
});
