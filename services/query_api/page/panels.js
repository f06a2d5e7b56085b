// Each panel of the page, drawn from `data`, the figures of one store, and `reply`, which says what they are about.

import { drawMinutes } from "./minutes.js";
import { drawHeatmap } from "./heatmap.js";
import { count, digits, make, percent } from "./dom.js";

const MEANINGS = {
  "1xx": "informational", "2xx": "success", "3xx": "redirection", "4xx": "client error", "5xx": "server error",
};
const OTHERS = { other: "not an HTTP status", none: "no status recorded" };
const HOUR_MS = 3_600_000;

const nothing = () => make("p", { class: "none" }, "No requests in this period.");

export const panels = {
  total: { title: "Requests", draw: total },
  statuses: { title: "Status classes", draw: statuses },
  week: { title: "Time of day", draw: week },
  endpoints: { title: "Top endpoints", draw: endpoints },
  durations: { title: "Slowest endpoints", draw: durations },
};

function total({ count: requests }, { start_time: start, end_time: end }) {
  const hours = (Date.parse(end) - Date.parse(start)) / HOUR_MS;
  const rate = (value, unit) => `${value.toLocaleString("en", { maximumSignificantDigits: 3 })} ${unit}`;
  const rates = `${rate(requests / hours, "an hour")}, ${rate(requests / hours / 60, "a minute")} on average`;
  return [make("p", { class: "big" }, count(requests)), make("p", { class: "soft" }, hours ? rates : "")];
}

function statuses(classes) {
  const all = classes.reduce((sum, each) => sum + each.count, 0);
  if (!all) return [nothing()];
  const bar = make("div", { class: "stack", "aria-hidden": "true" });
  const list = make("ul", { class: "legend" });
  for (const { class: name, count: requests } of classes) {
    const part = make("span", { class: `s${name}` });
    part.style.flexGrow = requests;
    bar.append(part);
    list.append(make("li", {},
      make("i", { class: `s${name}`, "aria-hidden": "true" }),
      ...(name in MEANINGS ? [make("b", {}, name), MEANINGS[name]] : [OTHERS[name]]),
      make("span", { class: "figure" }, `${count(requests)} · ${percent(requests / all)}`)));
  }
  return [bar, list];
}

function week({ by_weekday_and_hour: hours, by_minute_of_day: minutes }, { zone }) {
  if (!minutes.some(Boolean)) return [nothing()];
  return [
    make("h3", {}, `By weekday and hour, ${zone}`), drawHeatmap(hours),
    make("h3", {}, `By minute of the day, ${zone}`), drawMinutes(minutes),
  ];
}

function endpoints(ranked) {
  if (!ranked.length) return [nothing()];
  const list = make("ol", { class: "bars" });
  for (const { method, endpoint, count: requests } of ranked) {
    const bar = make("span", { class: "bar", "aria-hidden": "true" });
    bar.style.width = `${100 * requests / ranked[0].count}%`;
    list.append(make("li", {}, name(method, endpoint), make("span", { class: "figure" }, count(requests)), bar));
  }
  return [list];
}

function durations(ranked) {
  if (!ranked.length) return [make("p", { class: "none" }, "No request in this period has a duration.")];
  const body = make("tbody");
  for (const { method, endpoint, count: requests, ...times } of ranked) {
    const cells = [times.p50_ms, times.p95_ms, times.p99_ms].map(value => make("td", {}, digits(value)));
    body.append(make("tr", {},
      make("th", { scope: "row" }, name(method, endpoint)), ...cells, make("td", { class: "soft" }, count(requests))));
  }
  const heads = ["Milliseconds", "p50", "p95", "p99", "Requests"].map(text => make("th", { scope: "col" }, text));
  return [make("table", { class: "durations" }, make("thead", {}, make("tr", {}, ...heads)), body)];
}

function name(method, endpoint) {
  return make("span", { class: "endpoint", title: `${method} ${endpoint}` },
    make("b", { class: "method" }, method), " ", make("span", { class: "path" }, endpoint));
}
