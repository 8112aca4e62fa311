// The client of the TypeScript SDK 1.x.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import * as t from "@modelcontextprotocol/sdk/types.js";
import { main, refused, told } from "./steps.mjs";

await main(async ({ command, args, env }, name, seen) => {
  const client = new Client({ name, version: "1" }, { capabilities: { sampling: {}, elicitation: {}, roots: {} } });
  client.setRequestHandler(t.ElicitRequestSchema, () => {
    seen.note("asked", "elicitation/create");
    return { action: "accept", content: { name: "Ann" } };
  });
  client.setRequestHandler(t.CreateMessageRequestSchema, () => {
    seen.note("asked", "sampling/createMessage");
    return { role: "assistant", content: { type: "text", text: "sampled" }, model: "none" };
  });
  client.setRequestHandler(t.ListRootsRequestSchema, () => {
    seen.note("asked", "roots/list");
    return { roots: [{ uri: `file://${seen.root}` }] };
  });
  client.setNotificationHandler(t.LoggingMessageNotificationSchema, ({ params }) => seen.note("logged", params.data));
  client.setNotificationHandler(t.ResourceUpdatedNotificationSchema, ({ params }) => seen.note("updated", params.uri));
  const transport = new StdioClientTransport({ command, args, env });
  let version;
  transport.setProtocolVersion = (agreed) => (version = agreed);
  await client.connect(transport);
  return {
    version: () => version,
    close: () => client.close(),
    tools: async () => (await client.listTools()).tools.map((tool) => tool.name),
    call: async (name, args, signal) => {
      const onprogress = ({ progress }) => seen.note("progress", progress);
      const params = { name, arguments: args };
      return client.callTool(params, undefined, { onprogress, signal }).then(told, refused);
    },
    setLevel: (level) => client.setLoggingLevel(level),
    subscribe: async (uri) => {
      await client.subscribeResource({ uri });
      return () => client.unsubscribeResource({ uri });
    },
    task: async (name, args) => {
      const stream = client.experimental.tasks.callToolStream({ name, arguments: args }, t.CallToolResultSchema, { task: { ttl: 60000 } });
      for await (const message of stream) {
        if (message.type === "result") return told(message.result);
        if (message.type === "error") return refused(message.error);
      }
      throw new Error("a task without an end");
    },
  };
});
