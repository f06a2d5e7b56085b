// Calls the query API, with the token if it asks for one, and reads its events.

import { at } from "./dom.js";

const TOKEN = "token";

// `unreachable`: nothing answered, or the store did not; to go on with other panels would only take time.
export class Problem extends Error {
  constructor(message, unreachable) {
    super(message);
    this.unreachable = unreachable;
  }
}

export async function query(path, parameters, signal) {
  const reply = await call(`api/query/${path}?${new URLSearchParams(parameters)}`, signal);
  return reply.json();
}

// Calls `on(name, data)` for each event, until the server ends the stream.
export async function listen(path, signal, on) {
  const reply = await call(`api/query/${path}`, signal);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const lines of events) {
      const found = /^event: (.*)\ndata: (.*)$/.exec(lines);
      if (found) on(found[1], JSON.parse(found[2]));
    }
  }
}

async function call(url, signal) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let reply;
  try {
    reply = await fetch(url, { headers, signal });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Problem("The query API does not answer. Is it running, and can this browser reach it?", true);
  }
  if (reply.status === 401) {
    await askForToken();
    return call(url, signal);
  }
  if (!reply.ok) {
    const { detail } = await reply.json().catch(() => ({ detail: `The query API answers ${reply.status}.` }));
    throw new Problem(detail, reply.status === 503 || reply.status === 504);
  }
  return reply;
}

let asking;

function askForToken() {
  asking ??= new Promise(resolve => {
    const dialog = at("token"), form = dialog.querySelector("form");
    form.onsubmit = event => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, form.elements.token.value);
      dialog.close();
    };
    dialog.oncancel = event => event.preventDefault();
    dialog.onclose = () => {
      asking = undefined;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}
