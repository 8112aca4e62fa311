// A server on the TypeScript SDK 2.x.
import { McpServer, acceptedContent, inputRequired } from "@modelcontextprotocol/server";
import { serveStdio } from "@modelcontextprotocol/server/stdio";
import { z } from "zod";

const text = (text) => ({ content: [{ type: "text", text }] });
const name = z.object({ name: z.string() });

let giveUp, release;
const gaveUp = new Promise((resolve) => (giveUp = resolve));
const released = new Promise((resolve) => (release = resolve));

serveStdio(() => {
  const server = new McpServer(
    { name: "own", version: "1" },
    { capabilities: { logging: {}, resources: { subscribe: true } } },
  );
  const report = (context, progress) => {
    const progressToken = context.mcpReq._meta?.progressToken;
    return context.mcpReq.notify({ method: "notifications/progress", params: { progressToken, progress } });
  };
  const nothing = z.object({});
  server.registerTool("echo", { inputSchema: z.object({ message: z.string() }) }, ({ message }) => text(`echo: ${message}`));
  server.registerTool("count", { inputSchema: z.object({ steps: z.number() }) }, async ({ steps }, context) => {
    for (let step = 1; step <= steps; step++) await report(context, step);
    await released;
    return text(`counted ${steps}`);
  });
  server.registerTool("release", { inputSchema: nothing }, () => {
    release();
    return text("released");
  });
  server.registerTool("say", { inputSchema: nothing }, async (_, context) => {
    await context.mcpReq.log("info", "said");
    return text("said");
  });
  server.registerTool("hang", { inputSchema: nothing }, async (_, context) => {
    context.mcpReq.signal.addEventListener("abort", giveUp);
    await report(context, 1);
    await gaveUp;
    return text("never");
  });
  server.registerTool("gave_up", { inputSchema: nothing }, async () => {
    await gaveUp;
    return text("gave up");
  });
  server.registerTool("ask", { inputSchema: nothing }, (_, context) => {
    const given = acceptedContent(context.mcpReq.inputResponses, "who", name);
    if (given) return text(`hello ${given.name}`);
    return inputRequired({ inputRequests: { who: inputRequired.elicit({ message: "Name?", requestedSchema: name }) } });
  });
  server.registerResource("thing", "own://thing", {}, () => ({ contents: [{ uri: "own://thing", text: "a thing" }] }));
  server.server.setRequestHandler("resources/subscribe", () => ({}));
  server.registerTool("touch", { inputSchema: nothing }, async () => {
    await server.server.sendResourceUpdated({ uri: "own://thing" });
    return text("touched");
  });
  return server;
});
