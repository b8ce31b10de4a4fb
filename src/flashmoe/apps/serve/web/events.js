// Server-sent events out of a response's body. EventSource cannot post, nor send a key.

const MOST = 8 << 20; // characters of one line: no event of ours is as long

/** What comes, in order: `{comment}`, or `{event, data}` with the lines of data joined. */
export async function* events(body) {
  let event = "message";
  let data = [];
  for await (const line of lines(body)) {
    if (line === "") {
      if (data.length) yield { event, data: data.join("\n") };
      event = "message";
      data = [];
    } else if (line.startsWith(":")) {
      yield { comment: line.slice(1).trim() };
    } else {
      const at = line.indexOf(":");
      const name = at < 0 ? line : line.slice(0, at);
      const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
      if (name === "data") data.push(value);
      else if (name === "event") event = value;
    }
  }
}

/** Lines, by any of the three ends of line; a last one without an end is dropped, as specified. */
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      if (rest.length > MOST) throw new Error("the server sends a line without an end");
      const whole = rest.split(/\r\n|\n|\r(?=[^\n])/);
      rest = whole.pop();
      yield* whole;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
