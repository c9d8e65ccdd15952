// The server's interface, as every client has it. The key stays in this tab.

const KEY = "api-key";

/** The server's word that it will not. */
export class Refusal extends Error {
  constructor(status, { message } = {}, seconds = 0) {
    super(message ?? `The server answered with status ${status}.`);
    this.status = status;
    this.seconds = seconds; // after which to come again
  }
}

/** There was no answer, or no end of it. */
export class Unreachable extends Error {}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw options.signal?.aborted ? error : new Unreachable("The server cannot be reached.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Refusal(response.status, told.error, Number(response.headers.get("Retry-After")) || 0);
}

/** The names of the models. */
export async function models() {
  const { data } = await (await call("/v1/models")).json();
  return data.map((model) => model.id);
}

/** How many tokens a model's context holds; null where that is not known. */
export async function contextOf(model) {
  const path = `/v1/models/${model.split("/").map(encodeURIComponent).join("/")}`;
  return (await (await call(path)).json()).max_model_len ?? null;
}

export async function isAlive() {
  try {
    return (await fetch("/health", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

/** An answer as it comes: `{ text }`, `{ thoughts }`, `{ finish }`, `{ usage }`. */
export async function* answer(body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await call("/v1/chat/completions", {
    method: "POST", body: JSON.stringify(asked), signal,
  });
  for await (const event of events(response.body, signal)) {
    if (event === "[DONE]") return;
    const { choices: [choice] = [], usage, error } = JSON.parse(event);
    if (error) throw new Refusal(500, error);
    if (choice?.delta?.reasoning_content) yield { thoughts: choice.delta.reasoning_content };
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (usage) yield { usage };
  }
  throw new Unreachable("The server ended in the middle of the answer.");
}

/** The data of server-sent events. */
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      return;
    }
    if (read.done) return;
    const parts = (waiting + read.value).split("\n\n");
    waiting = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}
