// What both TypeScript clients do: the steps of a job, each with what was seen meanwhile, written to stdout as JSON.
import { readFileSync } from "node:fs";

const STEP_MS = 30_000; // only what hangs takes this long

export class Seen {
  constructor(root) {
    this.root = root;
    this.clear();
  }

  clear() {
    Object.assign(this, { progress: [], asked: [], logged: [], updated: [], waiting: [] });
  }

  note(kind, value) {
    this[kind].push(value);
    for (const wake of this.waiting.splice(0)) wake();
  }

  async until(kind, times = 1) {
    while (this[kind].length < times) await new Promise((resolve) => this.waiting.push(resolve));
  }

  report() {
    const kinds = ["progress", "asked", "logged", "updated"].filter((kind) => this[kind].length);
    return Object.fromEntries(kinds.map((kind) => [kind, this[kind]]));
  }
}

export const told = (result) => ({
  text: result.content.filter((block) => block.type === "text").map((block) => block.text).join("\n"),
  is_error: Boolean(result.isError),
  denial: result._meta?.["mcpguard/denial"] ?? null,
});

export const refused = (error) => {
  if (typeof error.code !== "number") throw error;
  return { code: error.code, message: error.message, data: error.data };
};

async function perform(session, seen, { do: what, tool, arguments: given = {}, then, level, uri }) {
  switch (what) {
    case "list":
      return { tools: await session.tools() };
    case "call":
      return session.call(tool, given);
    case "hold": { // it reports progress and then waits until another tool is called
      const called = session.call(tool, given);
      await seen.until("progress", given.steps);
      await session.call(then, {});
      return called;
    }
    case "cancel": {
      const giveUp = new AbortController();
      const called = session.call(tool, given, giveUp.signal).catch(() => {});
      await seen.until("progress");
      giveUp.abort();
      await called;
      return { cancelled: true };
    }
    case "log": {
      if (level) await session.setLevel(level);
      const answer = await session.call(tool, given);
      await seen.until("logged");
      return answer;
    }
    case "subscribe": {
      const leave = await session.subscribe(uri);
      const answer = await session.call(tool, given);
      await seen.until("updated");
      await leave();
      return answer;
    }
    case "task":
      return session.task(tool, given);
    default:
      throw new Error(what);
  }
}

async function bounded(promise) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error("not in time")), STEP_MS)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

export async function main(connect) {
  const job = JSON.parse(readFileSync(process.argv[2], "utf-8"));
  const reports = [];
  for (const spec of job.sessions) {
    const seen = new Seen(job.root);
    const session = await bounded(connect(spec, job.client, seen));
    const answers = [];
    for (const step of spec.steps) {
      seen.clear();
      let answer;
      try {
        answer = await bounded(perform(session, seen, step));
      } catch (error) {
        answer = { failed: String(error) };
      }
      answers.push({ ...answer, ...seen.report() });
    }
    reports.push({ version: session.version(), answers });
    await session.close();
  }
  process.stdout.write(JSON.stringify(reports) + "\n");
}
