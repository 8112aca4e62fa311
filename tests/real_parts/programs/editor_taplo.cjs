// An editor with Even Better TOML's language server. Prints what it completes at a place, as JSON:
// node editor_taplo.cjs FILE LINE COLUMN, both from 0.
const fs = require("node:fs");
const path = require("node:path");
const url = require("node:url");
const { TaploLsp } = require("@taplo/lsp");

const file = path.resolve(process.argv[2]);
const [line, character] = process.argv.slice(3).map(Number);
const root = url.pathToFileURL(path.dirname(file)).href;
const uri = url.pathToFileURL(file).href;
const environment = {
  now: () => new Date(),
  envVar: () => undefined,
  envVars: () => [],
  stdErrAtty: () => false,
  stdin: process.stdin,
  stdout: process.stderr,
  stderr: process.stderr,
  glob: () => [],
  readFile: (name) => fs.promises.readFile(name),
  writeFile: () => Promise.reject(new Error("nothing is written")),
  urlToFilePath: url.fileURLToPath,
  isAbsolute: path.isAbsolute,
  cwd: () => process.cwd(),
  findConfigFile: () => undefined,
  fetch: { fetch: () => Promise.reject(new Error("offline")), Headers, Request, Response },
};
const waiting = new Map();

function receive(server, message) {
  if (message.method && message.id !== undefined) {
    server.send({ jsonrpc: "2.0", id: message.id, result: [{}] }); // it asks for its settings
  } else {
    waiting.get(message.id)?.(message.result);
  }
}

async function main() {
  const server = await TaploLsp.initialize(environment, { onMessage: (message) => receive(server, message) });
  const ask = (id, method, params) =>
    new Promise((resolve) => {
      waiting.set(id, resolve);
      server.send({ jsonrpc: "2.0", id, method, params });
    });
  await ask(1, "initialize", { capabilities: {}, rootUri: root, workspaceFolders: [{ uri: root, name: "policy" }] });
  server.send({ jsonrpc: "2.0", method: "initialized", params: {} });
  const text = fs.readFileSync(file, "utf8");
  server.send({
    jsonrpc: "2.0",
    method: "textDocument/didOpen",
    params: { textDocument: { uri, languageId: "toml", version: 1, text } },
  });
  const found = await ask(2, "textDocument/completion", { textDocument: { uri }, position: { line, character } });
  const texts = (found ?? []).map((one) => [one.label, one.documentation?.value ?? ""]);
  console.log(JSON.stringify(Object.fromEntries(texts)));
  process.exit(0);
}

main();
