// Conversations, kept in this browser and nowhere else. Owns their form and where they are kept.
//
// A conversation is `{id, title, touched, settings, messages}`; a message is what the user said
// (`role`, `content`), what a tool gave (also `call`, `name`), or a reply (also `reasoning`,
// `calls`, `ended`, `cost`). Each has an entry of its own, so that two tabs spoil nothing of one
// another's but the same conversation. What cannot be read is left alone and not shown.

const PREFIX = "flashmoe.conversation.";
const LATEST = "flashmoe.latest";
const DEFAULTS = "flashmoe.settings";

/** What a new conversation begins with: everything is the model's own. */
export const UNSET = {
  system: "", tools: "", temperature: null, top_p: null, top_k: null, max_tokens: null,
  thinking: "default",
};

/** All that are kept, the latest first. */
export function all() {
  const found = [];
  for (let at = 0; at < localStorage.length; at += 1) {
    const name = localStorage.key(at);
    if (name.startsWith(PREFIX)) found.push(read(name));
  }
  return found.filter(Boolean).sort((one, other) => other.touched - one.touched);
}

/** An empty one, with the settings that were chosen last; it is kept once something is said. */
export function begin() {
  const id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(36).slice(2)}`;
  return { id, title: "", touched: Date.now(), settings: chosen(), messages: [] };
}

/** Keep it as it is now; false where the browser has no room. */
export function keep(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    localStorage.setItem(LATEST, conversation.id);
    return true;
  } catch {
    return false;
  }
}

export function remove(conversation) {
  localStorage.removeItem(PREFIX + conversation.id);
}

/** The one that was kept or shown last, if it is still there. */
export function latest() {
  const id = localStorage.getItem(LATEST);
  return id ? read(PREFIX + id) : null;
}

/** Come back to it when the page is opened again. */
export function remember(conversation) {
  localStorage.setItem(LATEST, conversation.id);
}

/** New conversations begin with these settings, without the system prompt and the tools. */
export function prefer(settings) {
  const { temperature, top_p, top_k, max_tokens, thinking } = settings;
  localStorage.setItem(DEFAULTS, JSON.stringify({ temperature, top_p, top_k, max_tokens, thinking }));
}

/** A title from what was said first. */
export function titled(text) {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}

function chosen() {
  try {
    return { ...UNSET, ...JSON.parse(localStorage.getItem(DEFAULTS) ?? "{}") };
  } catch {
    return { ...UNSET };
  }
}

function read(name) {
  try {
    const found = JSON.parse(localStorage.getItem(name));
    const sound = found && PREFIX + found.id === name && Array.isArray(found.messages)
      && found.messages.every((one) => typeof one?.content === "string"
        && ["user", "assistant", "tool"].includes(one.role));
    return sound ? { ...found, settings: { ...UNSET, ...found.settings } } : null;
  } catch {
    return null;
  }
}
