// The conversation on the page, and the one reply that may be coming. Owns what is shown of it and
// where the page is scrolled; not what the boxes and lists around it do (`main.js`).

import { announce, by, make, notify } from "./dom.js";
import { drawReply, drawTool, drawUser, waitingLine } from "./message.js";
import { emptyReply, requestOf, settled, takeIn } from "./request.js";
import * as conversations from "./conversations.js";
import * as server from "./server.js";

const NEAR = 80; // pixels from the end at which the page follows what comes

export class Thread {
  /** `changed` hears that the conversation has, or that a reply began or ended; `unknown` that the
   * server wants a key. */
  constructor(changed, unknown) {
    this.conversation = null;
    this.model = "";
    this.coming = null; // what ends the reply that is coming
    this.replying = null; // that reply
    this.discarded = null; // what ends one that is to leave nothing
    this.changed = changed;
    this.unknown = unknown;
    this.node = by("thread");
    this.scroll = by("scroll");
    this.following = true;
    this.deeds = {
      edit: (message, text) => this.edit(message, text),
      again: (reply) => this.again(reply),
      answer: (reply, results) => this.answer(reply, results),
    };
    this.scroll.addEventListener("scroll", () => this.look(), { passive: true });
    by("latest").addEventListener("click", () => this.follow());
    new ResizeObserver(() => this.settle()).observe(this.node);
    addEventListener("pagehide", () => this.rescue());
  }

  /** Show another conversation; a reply that is coming ends, and what there is of it is kept. */
  show(conversation) {
    if (conversation.id === this.conversation?.id) return;
    this.stop();
    this.conversation = conversation;
    this.draw();
    this.follow();
  }

  draw() {
    const { messages } = this.conversation;
    this.node.replaceChildren(...messages.map((message, at) =>
      this.drawOne(message, at === messages.length - 1)));
    this.changed();
  }

  drawOne(message, last) {
    if (message.role === "user") return drawUser(message, this.deeds);
    if (message.role === "tool") return drawTool(message);
    const drawn = drawReply(message, this.deeds);
    drawn.end(last);
    return drawn.node;
  }

  /** Say something, and have it answered. */
  say(text) {
    if (!this.conversation.title) this.conversation.title = conversations.titled(text);
    this.append({ role: "user", content: text });
    return this.reply();
  }

  append(message) {
    this.conversation.messages.push(message);
    this.keep();
  }

  edit(message, text) {
    this.cut(message);
    return this.say(text);
  }

  again(reply) {
    this.cut(reply);
    return this.reply();
  }

  answer(reply, results) {
    reply.calls.forEach((call, at) =>
      this.append({ role: "tool", call: call.id, name: call.name, content: results[at] }));
    return this.reply();
  }

  /** Forget a message and all that follows. */
  cut(message) {
    this.discard();
    const { messages } = this.conversation;
    const at = messages.indexOf(message);
    if (at >= 0) messages.length = at;
  }

  keep() {
    this.conversation.touched = Date.now();
    if (!conversations.keep(this.conversation)) {
      notify("This browser has no room for more: delete conversations to keep this one.");
    }
  }

  stop() {
    this.coming?.abort();
  }

  /** End the reply that is coming, and keep nothing of it. */
  discard() {
    this.discarded = this.coming;
    this.stop();
  }

  /** Ask for the next reply, and show it as it comes. */
  async reply() {
    this.stop();
    const ended = this.coming = new AbortController();
    const { conversation } = this;
    this.draw();
    const reply = this.replying = emptyReply();
    const drawn = drawReply(reply, this.deeds);
    this.node.append(drawn.node);
    this.follow();
    const brush = this.brush(reply, drawn);
    try {
      brush.touch();
      this.model ||= await server.model();
      const request = requestOf(this.model, conversation);
      for await (const one of server.reply(request, ended.signal)) {
        takeIn(reply, one);
        brush.touch();
      }
      reply.ended ??= "stop";
    } catch (error) {
      if (ended.signal.aborted) reply.ended = "stopped";
      else this.failed(reply, error);
    }
    brush.lift();
    this.end(conversation, reply, drawn, ended);
  }

  end(conversation, reply, drawn, ended) {
    if (this.coming === ended) this.coming = null;
    const kept = settled(reply);
    if (this.discarded !== ended) {
      conversation.messages.push(kept);
      conversation.touched = Date.now();
      conversations.keep(conversation);
    }
    if (drawn.node.isConnected) {
      drawn.show();
      const rest = drawn.rest();
      drawn.node.replaceWith(this.drawOne(kept, true));
      const how = reply.failed ?? { stopped: "Stopped", tool_calls: "A tool is called" }[reply.ended]
        ?? "The reply is complete";
      announce(`${rest}\n${how}`.trim());
    }
    this.changed();
    this.settle();
  }

  /** The page goes: keep what there is of a reply. */
  rescue() {
    if (!this.coming) return;
    this.conversation.messages.push(settled({ ...this.replying, ended: "stopped" }));
    conversations.keep(this.conversation);
    this.discard();
  }

  failed(reply, error) {
    reply.ended = "failed";
    reply.failed = error.message || String(error);
    if (!(error instanceof server.Refused)) {
      reply.failed = `The page has failed: ${reply.failed}`;
      console.error(error);
    }
    if (error.status === 401) this.unknown();
    if (error.status === 429 && error.after) reply.failed += ` Try again in ${error.after} s.`;
  }

  /** What draws a reply at most once a frame, and tells those who listen what is final. */
  brush(reply, drawn) {
    let due = 0;
    let waited = "";
    const draw = () => {
      due = 0;
      const final = drawn.show();
      if (final) announce(final);
      const what = reply.waits?.what ?? "";
      if (what !== waited && what) announce(waitingLine(reply.waits));
      waited = what;
      this.settle();
    };
    return {
      touch: () => { due ||= requestAnimationFrame(draw); },
      lift: () => cancelAnimationFrame(due),
    };
  }

  follow() {
    this.following = true;
    this.settle();
  }

  /** Stay at the end, where the reader is. */
  settle() {
    if (this.following) this.scroll.scrollTop = this.scroll.scrollHeight;
    this.look();
  }

  look() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroll;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR;
    by("latest").hidden = this.following || !this.conversation?.messages.length;
  }

  /** What an empty conversation shows. */
  welcome(suggestions) {
    this.node.replaceChildren(make("section", { className: "welcome" },
      make("h2", { text: "What would you like to know?" }),
      make("p", { text: `${this.model || "The model"} answers from this machine alone. Its experts `
        + "are read from the drive as each token chooses them; the map shows which." }),
      make("ul", { className: "suggestions" }, ...suggestions.map(({ text, take }) =>
        make("li", {}, make("button", { type: "button", className: "suggestion", text,
          on: { click: take } }))))));
  }
}
