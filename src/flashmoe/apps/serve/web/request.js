// A conversation as the chat API wants it, and a reply as it comes from there. Knows no element.

/** The body of a request for the next reply. What is not set is not sent: the model's own holds. */
export function requestOf(model, { settings, messages }) {
  const body = {
    model,
    messages: messages.map(wire),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (settings.system.trim()) {
    body.messages.unshift({ role: "system", content: settings.system });
  }
  for (const name of ["temperature", "top_p", "top_k", "max_tokens"]) {
    if (settings[name] !== null) body[name] = settings[name];
  }
  if (settings.tools.trim()) body.tools = toolsOf(settings.tools);
  if (settings.thinking !== "default") {
    body.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  }
  return body;
}

function wire(message) {
  if (message.role === "tool") {
    return { role: "tool", tool_call_id: message.call, content: message.content };
  }
  const sent = { role: message.role, content: message.content };
  if (message.reasoning) sent.reasoning_content = message.reasoning;
  if (message.calls?.length) {
    sent.tool_calls = message.calls.map(({ id, name, arguments: given }) =>
      ({ id, type: "function", function: { name, arguments: given } }));
  }
  return sent;
}

/** Tools from the text of a JSON list; each may be the function alone. Throws what to mend. */
export function toolsOf(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not JSON: ${error.message}`);
  }
  if (!Array.isArray(found)) throw new Error("Tools are a list: [ {…}, … ]");
  return found.map((tool, at) => {
    const whole = tool?.type === "function" ? tool : { type: "function", function: tool };
    if (typeof whole.function?.name !== "string") throw new Error(`Tool ${at + 1} has no name`);
    return whole;
  });
}

/** An empty reply. `waits` says what it waits for: `{what, place, done, total, rate, left}`. */
export function emptyReply() {
  return {
    role: "assistant", content: "", reasoning: "", calls: [], ended: null, cost: null,
    waits: { what: "server" }, began: performance.now(), first: null, last: null, thought: null,
  };
}

/** Take in what the stream has brought. */
export function takeIn(reply, one) {
  if (one.comment !== undefined) return comment(reply, one.comment);
  if (one.usage) reply.cost = costOf(reply, one.usage);
  const choice = one.choices?.[0];
  if (!choice) return;
  const { delta = {} } = choice;
  if (delta.reasoning_content || delta.content || delta.tool_calls) heard(reply);
  if (delta.reasoning_content) reply.reasoning += delta.reasoning_content;
  if (delta.content || delta.tool_calls) {
    if (reply.reasoning && reply.thought === null) reply.thought = reply.last - reply.first;
  }
  if (delta.content) reply.content += delta.content;
  for (const part of delta.tool_calls ?? []) call(reply, part);
  if (choice.finish_reason) reply.ended = choice.finish_reason;
}

function heard(reply) {
  reply.last = performance.now();
  reply.first ??= reply.last;
  reply.waits = null;
}

function call(reply, { index = 0, id, function: given = {} }) {
  const one = reply.calls[index] ??= { id: "", name: "", arguments: "" };
  if (id) one.id = id;
  if (given.name) one.name += given.name;
  if (given.arguments) one.arguments += given.arguments;
}

/** Comments tell of the time in which there is nothing else to tell. */
function comment(reply, text) {
  const prompt = /^prompt ([\d.]+)\/(\d+) tokens(?:, ([\d.]+) tok\/s)?(?:, ([\d.]+) s left)?/.exec(text);
  const queue = /^queue\D*(\d+)/.exec(text);
  if (prompt) {
    const [done, total, rate, left] = prompt.slice(1).map((part) => part && Number(part));
    reply.waits = { what: "prompt", done, total, rate, left };
  } else if (queue) {
    reply.waits = { what: "queue", place: Number(queue[1]) };
  } else if (text === "call") {
    reply.waits = { what: "call" };
  }
}

/** What a reply has cost, in the words of the footer. */
function costOf(reply, usage) {
  const tokens = usage.completion_tokens;
  const decoding = reply.last - reply.first;
  return {
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    tokens,
    reasoning: usage.completion_tokens_details?.reasoning_tokens ?? 0,
    first: reply.first === null ? null : (reply.first - reply.began) / 1000,
    rate: tokens > 1 && decoding > 0 ? (1000 * (tokens - 1)) / decoding : null,
  };
}

/** What of a reply is kept. */
export function settled({ role, content, reasoning, calls, ended, cost, thought, failed }) {
  return { role, content, reasoning, calls: calls.filter(Boolean), ended, cost, thought, failed };
}
