// The page: reads the controls, queries the panels one after the other, and draws them.

import { Problem, listen, query } from "./api.js";
import { drawComparison, versions } from "./comparison.js";
import { at, count, make, milliseconds } from "./dom.js";
import { panels } from "./panels.js";
import { EVERY_STORE, period, read, write } from "./state.js";
import { clock, instant, zones } from "./zone.js";

const DATASET = "footprints";
const RETRY_MS = [1000, 2000, 5000, 15000];
const PAUSE_MS = 2000;  // between two refreshes of a live page, besides what the queries take

const controls = at("controls").elements;
let state = read(), stores = [];
let shown = {};  // the last reply: its batch and its period

// --- queries

let refreshing = new AbortController();

async function refresh() {
  refreshing.abort();
  const { signal } = refreshing = new AbortController();
  const replies = [];
  let pinned = period(state);
  at("problem").textContent = "";
  mark(true);
  try {
    for (const [panel, { title, draw }] of Object.entries(panels)) {
      let reply;
      try {
        reply = await query(`${state.store}/${DATASET}/traffic`, { ...pinned, panel, zone: state.zone }, signal);
      } catch (error) {
        if (!(error instanceof Problem) || error.unreachable || !replies.length) throw error;
        show(panel, [make("p", { class: "warned", role: "alert" }, error.message)]);
        continue;
      }
      // The first reply fixes the period and the batch, so that all panels are about the same requests.
      pinned = { start_time: reply.start_time, end_time: reply.end_time, as_of: reply.as_of };
      replies.push([title, reply]);
      show(panel, state.store === EVERY_STORE ? compared(reply, draw) : one(reply, draw));
      describe(reply, replies);
    }
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof Problem)) throw error;
    fail(error.message);
  } finally {
    if (!signal.aborted) mark(false);
  }
}

function one(reply, draw) {
  const took = milliseconds(reply.query_time_ms), how = reply.method === "scan" ? "" : ` from its ${reply.method}`;
  return [...draw(reply.data, reply), make("p", { class: "took" }, `${label(reply.source)}, ${took}${how}`)];
}

function compared(reply, draw) {
  const found = versions(reply.results, stores.map(store => store.source));
  if (found.length === 1) return draw(found[0].data, reply);
  return [
    make("p", { class: "warned", role: "alert" }, `The stores disagree: there are ${found.length} different results.`),
    ...found.map(({ sources, data }) => make("div", { class: "version" },
      make("h3", {}, sources.map(label).join(" and ")), ...draw(data, reply))),
  ];
}

const label = source => stores.find(store => store.source === source)?.label ?? source;

function describe(reply, replies) {
  shown = reply;
  const [start, end] = [reply.start_time, reply.end_time].map(time => clock(time, state.zone).replace("T", " "));
  at("period").textContent = `${start} to ${end}, ${state.zone}, up to batch ${count(reply.as_of)}`;
  at("comparison").hidden = state.store !== EVERY_STORE;
  if (state.store === EVERY_STORE) {
    const labels = Object.fromEntries(stores.map(store => [store.source, store.label]));
    at("comparison").querySelector(".body").replaceChildren(...drawComparison(replies, labels));
  }
}

function show(panel, content) {
  at(panel).querySelector(".body").replaceChildren(...content);
  at(panel).ariaBusy = "false";
}

function mark(isBusy) {
  for (const panel of Object.keys(panels)) at(panel).ariaBusy = String(isBusy);
}

function fail(message) {
  at("problem").textContent = message;
  at("period").textContent = "";
  at("comparison").hidden = true;
  for (const panel of Object.keys(panels)) show(panel, [make("p", { class: "none" }, "No figures.")]);
}

// --- live update

let listening = new AbortController();

async function follow() {
  listening.abort();
  at("live").ariaPressed = String(state.live);
  if (!state.live || document.hidden) return;
  const { signal } = listening = new AbortController();
  const refreshFor = refresher(signal);
  for (let failures = 0; !signal.aborted; failures++) {
    try {
      await listen(`${state.store}/${DATASET}/changes`, signal, (name, data) => {
        failures = 0;
        note(name === "problem" ? `Live, but ${data.detail}` : "Live: new batches are shown as they come.");
        if (name === "as_of") refreshFor(data.as_of);
      });
    } catch (error) {
      if (signal.aborted) return;
      note(`Live update interrupted: ${error.message}`);
    }
    await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
  }
}

// Returns a function that refreshes for a new batch: one refresh at a time, and one more for what has come meanwhile.
function refresher(signal) {
  let wanted = null, done = null, isBusy = false;
  return async batch => {
    wanted = batch;
    if (isBusy) return;
    isBusy = true;
    while (!signal.aborted && wanted !== done) {
      done = wanted;
      if (done !== shown.as_of) await refresh();
      await pause(PAUSE_MS);
    }
    isBusy = false;
  };
}

const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));
const note = text => { at("note").textContent = text; };

// --- controls

function fillControls() {
  controls.last.value = state.last ?? "";
  controls.zone.value = state.zone;
  for (const name of ["start", "end"]) controls[name].value = state[name] ? clock(state[name], state.zone) : "";
  for (const radio of document.getElementsByName("store")) radio.checked = radio.value === state.store;
  showBounds();
}

function showBounds() {
  for (const bound of document.querySelectorAll(".bound")) bound.hidden = controls.last.value !== "";
}

function readControls() {
  const zone = controls.zone.value.trim(), { live } = state;
  const common = { zone, store: controls.store.value, live };
  try {
    clock(0, zone);
  } catch {
    throw new Problem(`Unknown time zone "${zone}": choose one of the list, such as Asia/Seoul.`);
  }
  if (controls.last.value) return { ...common, last: controls.last.value };
  if (!controls.start.value || !controls.end.value) throw new Problem("Choose both a start and an end of the period.");
  return { ...common, start: instant(controls.start.value, zone), end: instant(controls.end.value, zone) };
}

function apply() {
  if (!stores.length) {
    start();
    return;
  }
  try {
    state = readControls();
  } catch (error) {
    at("problem").textContent = error.message;
    return;
  }
  note("");
  write(state);
  refresh();
  follow();
}

at("controls").addEventListener("submit", event => {
  event.preventDefault();
  apply();
});

at("controls").addEventListener("change", event => {
  if (event.target === controls.last && !controls.last.value) {
    // The period that is shown is where the choice of another one begins.
    for (const name of ["start", "end"]) {
      const time = shown[`${name}_time`];
      controls[name].value = time ? clock(time, state.zone) : "";
    }
    showBounds();
    controls.start.focus();
    return;
  }
  if (["start", "end"].includes(event.target.name)) return;  // typed digit by digit: Refresh, or Enter, applies them
  showBounds();
  apply();
});

at("live").addEventListener("click", () => {
  state = { ...state, live: !state.live };
  note("");
  write(state);
  follow();
});

at("share").addEventListener("click", async () => {
  write(state);
  try {
    await navigator.clipboard.writeText(location.href);
    note("Link copied.");
  } catch {
    note("This browser does not let the page copy: the address above is the link.");
  }
});

addEventListener("popstate", () => {
  state = { ...read(), store: read().store || stores[0].route };
  fillControls();
  refresh();
  follow();
});

document.addEventListener("visibilitychange", follow);

// --- start

async function start() {
  try {
    stores = (await query("stores", {}, refreshing.signal)).stores;
  } catch (error) {
    fail(error.message);
    return;
  }
  for (const { route, label: text } of [...stores, { route: EVERY_STORE, label: "side by side" }]) {
    at("stores").append(make("label", {}, make("input", { type: "radio", name: "store", value: route }), text));
  }
  state.store ||= stores[0].route;
  fillControls();
  write(state);
  await refresh();
  follow();
}

at("zones").append(...zones().map(value => make("option", { value })));
start();
