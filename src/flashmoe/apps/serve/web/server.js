// What is asked of the server, and what it says. Owns the key, which goes nowhere else and is
// forgotten with the tab.

import { events } from "./events.js";

const KEY = "flashmoe.key";

/** The server has refused; `status` is HTTP's, 0 where it was not reached. */
export class Refused extends Error {
  constructor(status, message, after = null) {
    super(message);
    this.status = status;
    this.after = after;
  }
}

export function keep(key) {
  sessionStorage.setItem(KEY, key);
}

/** Ask; the response of a request that was not refused. */
async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refused(0, "The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = `The server answers ${response.status}.`;
  try {
    message = (await response.json()).error.message || message;
  } catch {
    // No body of ours: the number has to do.
  }
  return new Refused(response.status, message, response.headers.get("Retry-After"));
}

/** The name of the model that is served. */
export async function model() {
  const found = await (await ask("v1/models")).json();
  return found.data[0].id;
}

/** A reply as it comes: `{comment}`, or the chunks of the chat API, parsed. */
export async function* reply(request, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(request),
    signal,
  });
  for await (const one of events(response.body)) {
    if (one.comment !== undefined) yield one;
    else if (one.data === "[DONE]") return;
    else {
      const chunk = JSON.parse(one.data);
      if (chunk.error) throw new Refused(500, chunk.error.message || "The server has failed.");
      yield chunk;
    }
  }
  throw new Refused(0, "The connection ended before the reply did.");
}

/** The experts as they come: `{event, data}`, the data parsed. */
export async function* experts(signal) {
  const response = await ask("map", { headers: { Accept: "text/event-stream" }, signal });
  for await (const one of events(response.body)) {
    if (one.comment === undefined) yield { event: one.event, data: JSON.parse(one.data) };
  }
}
