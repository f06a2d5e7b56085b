"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const style = getComputedStyle(document.documentElement);
const color = (name) => style.getPropertyValue(`--${name}`).trim();
const NEEDED = data.needed;
const QUANTILES = Object.keys(NEEDED);
const FIRST = 8;
const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];
const HUES = ["postgres", "clickhouse", "lake", "spark", "other"];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}
function drawn(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
function number(value) {
  return Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}
function brief(value) {
  return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
}
function hue(store) {
  if (store.includes(":spark")) return color("spark");
  const known = HUES.find((name) => store.startsWith(name));
  return color(known || "other");
}
function palette(index) { return color(HUES[index % HUES.length]); }
function dot(shade) { return element("span", { class: "dot", style: `background:${shade}` }); }
function section(title, about) {
  page.append(element("h2", {}, title));
  if (about) page.append(element("p", { class: "soft" }, about));
}
function table(head, rows, numbers = []) {
  const cell = (tag, content, index) => element(tag, numbers.includes(index) ? { class: "number" } : {}, content);
  const body = element("tbody");
  for (const row of rows) {
    const line = element("tr", row.first ? { class: "first" } : {});
    row.cells.forEach((content, index) => line.append(cell("td", content, index)));
    body.append(line);
  }
  const top = element("tr");
  head.forEach((content, index) => top.append(cell("th", content, index)));
  return element("div", { class: "scroll card" }, element("table", {}, element("thead", {}, top), body));
}
function estimate(value, quantile) {
  const made = element("span");
  if (!value) {
    made.append(element("span", { class: "soft small" }, quantile ? `n < ${NEEDED[quantile].toLocaleString("en")}` : "-"));
    return made;
  }
  made.append(number(value.value));
  if (value.low !== value.high) made.append(element("span", { class: "range" }, `${number(value.low)} to ${number(value.high)}`));
  return made;
}
function setting(condition) {
  const parts = condition.share === null ? [`${condition.rows.toLocaleString("en")} rows`] : [`${Math.round(condition.share * 100)} % of the knee`];
  if (condition.state === "compacted") parts.push("lake compacted");
  if (condition.method === "kept") parts.push("rollups and metadata allowed");
  if (condition.method === "cache") parts.push("from the cache");
  parts.push(condition.rate ? `${condition.rate} queries/s` : "one query at a time");
  return parts.join(", ");
}
function grouped(items, key) {
  const groups = new Map();
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) || []), item]);
  return groups;
}

function opening() {
  page.append(
    element("h1", {}, data.plan),
    element("p", { class: "soft" }, data.about),
    element("p", { class: "soft small" }, `Run ${data.run}, started ${data.started.slice(0, 16).replace("T", " ")} UTC on ${data.machine.cores} cores of ${data.machine.cpu}, ${data.machine.memory}`),
  );
  if (data.status) page.append(element("div", { class: "status" }, data.status));
  const listed = (findings) => element("ul", { class: "findings" }, ...findings.map((each) => element("li", {}, each)));
  const card = element("div", { class: "card" }, listed(data.findings.length ? data.findings.slice(0, FIRST) : ["The run has no result yet."]));
  if (data.findings.length > FIRST) card.append(element("details", {}, element("summary", {}, `${data.findings.length - FIRST} more`), listed(data.findings.slice(FIRST))));
  page.append(card);
  if (data.voids.length) {
    const rows = element("tbody");
    for (const each of data.voids) rows.append(element("tr", {}, element("td", {}, each.key), element("td", { class: "wrap" }, each.reasons.join("; "))));
    page.append(element("div", { class: "card void scroll" }, element("h3", {}, `${data.voids.length} void ${data.voids.length === 1 ? "cell" : "cells"}, not ranked`), element("table", {}, rows)));
  }
  for (const note of data.notes) page.append(element("p", { class: "soft" }, note));
  const limits = element("p", { class: "limits" }, "Thresholds:");
  for (const [name, value] of Object.entries(data.thresholds)) limits.append(element("span", {}, `${name.replaceAll("_", " ")} `, element("b", {}, number(value))));
  page.append(limits);
}

function winMap(conditions) {
  const columns = [...new Set(conditions.map(setting))];
  const queries = [...grouped(conditions, (each) => each.query)];
  const head = element("tr", {}, element("th", {}, "query"));
  for (const column of columns) head.append(element("th", {}, column));
  const body = element("tbody");
  for (const [query, found] of queries) {
    const line = element("tr", {}, element("td", { class: "name" }, query));
    for (const column of columns) {
      const condition = found.find((each) => setting(each) === column);
      line.append(element("td", {}, condition ? winner(condition) : ""));
    }
    body.append(line);
  }
  page.append(element("div", { class: "card scroll" }, element("h3", { style: "margin-top:0" }, "Which store is fastest"), element("table", { class: "map" }, element("thead", {}, head), body)));
}
function winner(condition) {
  if (condition.winner) {
    const won = condition.results.find((each) => each.store === condition.winner);
    return element("span", { class: "cell", style: `background:${hue(won.store)}` }, won.label);
  }
  const valid = condition.results.filter((each) => !each.void.length);
  if (valid.length < 2) return element("span", { class: "cell voided" }, "void");
  return element("span", { class: "cell none" }, "not separable");
}

function intervals(conditions) {
  // Medians with their intervals, on one logarithmic axis.
  const shown = conditions.flatMap((each) => each.results).filter((each) => each.response.p50);
  if (!shown.length) return null;
  const least = Math.log10(Math.min(...shown.map((each) => each.response.p50.low)));
  const most = Math.log10(Math.max(...shown.map((each) => each.response.p50.high)));
  const low = Math.floor(least * 2) / 2, high = Math.max(Math.ceil(most * 2) / 2, low + 0.5);
  const [left, right, line, gap] = [270, 90, 20, 14];
  const width = 1000, height = conditions.reduce((sum, each) => sum + each.results.length * line + gap, 34);
  const x = (value) => left + ((Math.log10(value) - low) / (high - low)) * (width - left - right);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": "median response times" });
  for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
    for (const factor of [1, 2, 5]) {
      const at = factor * 10 ** power;
      if (Math.log10(at) < low - 0.001 || Math.log10(at) > high + 0.001) continue;
      svg.append(drawn("line", { x1: x(at), x2: x(at), y1: 4, y2: height - 24, stroke: color("grid") }));
      if (factor === 1) svg.append(drawn("text", { x: x(at), y: height - 8, "text-anchor": "middle" }, `${number(at)} ms`));
    }
  }
  let y = 14;
  for (const condition of conditions) {
    svg.append(drawn("text", { x: 0, y: y + 4, class: "name" }, condition.query));
    for (const result of condition.results) {
      const shade = hue(result.store), median = result.response.p50;
      svg.append(drawn("text", { x: left - 14, y: y + 4, "text-anchor": "end" }, result.label));
      if (result.void.length) {
        svg.append(drawn("text", { x: left + 4, y: y + 4, style: `fill:${color("bad")}` }, "void"));
      } else if (!median) {
        svg.append(drawn("text", { x: left + 4, y: y + 4 }, `n < ${NEEDED.p50}`));
      } else {
        svg.append(drawn("line", { x1: x(median.low), x2: x(median.high), y1: y, y2: y, stroke: shade, "stroke-width": 6, "stroke-linecap": "round", opacity: 0.4 }));
        svg.append(drawn("circle", { cx: x(median.value), cy: y, r: 5, fill: shade }));
        svg.append(drawn("text", { x: x(median.high) + 12, y: y + 4, class: "name", "font-weight": condition.winner === result.store ? 700 : 400 }, number(median.value)));
      }
      y += line;
    }
    y += gap;
  }
  return svg;
}

function plot(title, columns, series, options = {}) {
  const place = element("div");
  const names = element("div", { class: "legend" }, ...series.map((each) => element("span", {}, dot(each.stroke), each.label)));
  const card = element("div", { class: "card" }, element("h3", {}, title), place, names);
  const log = options.log ? { distr: 3 } : {};
  const axis = { stroke: color("soft"), grid: { stroke: color("grid") }, ticks: { stroke: color("line") }, font: "12px system-ui" };
  const ticks = (log) => (self, splits) => splits.map((value) => (value === null || (log && !/^[125]/.test(value.toExponential())) ? "" : brief(value)));
  setTimeout(() => new uPlot({
    width: place.clientWidth || 330,
    height: 230,
    cursor: { show: false },
    legend: { show: false },
    scales: { x: { time: false, ...(options.x || {}) }, y: { ...log, ...(options.y || {}) } },
    axes: [{ ...axis, values: options.names || ticks(options.x?.distr === 3), label: options.xLabel, labelSize: 18, labelFont: "12px system-ui", ...(options.splits ? { splits: options.splits } : {}) }, { ...axis, size: 58, values: ticks(options.log), label: options.yLabel, labelSize: 16, labelFont: "12px system-ui" }],
    series: [{}, ...series.map((each) => ({ width: 2, points: { show: true, size: 5 }, spanGaps: true, ...each }))],
    hooks: { draw: options.draw ? [options.draw] : [] },
  }, columns, place));
  return card;
}
function curves(condition) {
  const shares = ["min", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99.9", "max"];
  const results = condition.results.filter((each) => each.curve.length);
  if (!results.length) return null;
  const columns = [shares.map((_, index) => index), ...results.map((each) => each.curve.map((pair) => pair[1]))];
  const series = results.map((each) => ({ label: each.label + (each.void.length ? " (void)" : ""), stroke: hue(each.store), dash: each.void.length ? [4, 4] : [] }));
  return plot(condition.query, columns, series, { log: true, yLabel: "ms", splits: () => shares.map((_, index) => index), names: (self, splits) => splits.map((index) => (index % 3 === 0 ? shares[index] : "")) });
}
function reads(title, about, conditions) {
  if (!conditions.length) return;
  section(title, about);
  winMap(conditions);
  for (const [name, found] of grouped(conditions, setting)) {
    page.append(element("h3", {}, name));
    const image = intervals(found);
    if (image) page.append(element("div", { class: "card scroll" }, element("p", { class: "soft small" }, "Median response time from the intended time, and its 95 % interval"), image));
    const rows = found.flatMap((condition) => condition.results.map((result, index) => ({
      first: index === 0,
      cells: [
        index === 0 ? condition.query : "",
        element("span", {}, dot(hue(result.store)), result.label, " ", result.void.length ? element("span", { class: "tag bad" }, "void") : condition.winner === result.store ? element("span", { class: "tag good" }, "fastest") : ""),
        ...QUANTILES.map((quantile) => estimate(result.response[quantile], quantile)),
        estimate(result.store_ms, "p50"),
        result.samples.toLocaleString("en"),
        result.files ? result.files.toLocaleString("en") : "-",
        Object.keys(result.methods).join(", "),
      ],
    })));
    page.append(table(["query", "store", ...QUANTILES.map((each) => `${each}, ms`), "in the store, p50", "samples", "files read", "method"], rows, [2, 3, 4, 5, 6, 7, 8]));
    const grid = element("div", { class: "grid" });
    for (const condition of found) grid.append(curves(condition) || "");
    page.append(element("h3", {}, "Distribution of the response times"), grid);
  }
  const grid = element("div", { class: "grid" });
  for (const [name, found] of grouped(conditions.filter((each) => each.share === null), (each) => [each.query, each.method, each.state].join(", "))) {
    versus(grid, `${name}: against size`, found.filter((each) => !each.rate), (each) => each.rows, "rows");
    for (const [rows, same] of grouped(found, (each) => each.rows)) versus(grid, `${name}, ${brief(rows)} rows: against load`, same, (each) => each.rate, "queries/s");
  }
  if (grid.children.length) page.append(element("h3", {}, "Response time against size and load"), grid);
  files(conditions);
}
function versus(grid, title, conditions, of, unit) {
  const values = [...new Set(conditions.map(of).filter(Boolean))].sort((a, b) => a - b);
  if (values.length < 2) return;
  const stores = [...new Set(conditions.flatMap((each) => each.results.map((result) => result.store)))];
  const at = (store, value) => {
    const result = conditions.find((each) => of(each) === value).results.find((each) => each.store === store);
    return result && !result.void.length && result.response.p50 ? result.response.p50.value : null;
  };
  const columns = [values, ...stores.map((store) => values.map((value) => at(store, value)))];
  const label = (store) => conditions[0].results.find((each) => each.store === store)?.label || store;
  grid.append(plot(title, columns, stores.map((store) => ({ label: label(store), stroke: hue(store) })), { log: true, x: { distr: 3 }, xLabel: unit, yLabel: "p50, ms" }));
}
function files(conditions) {
  const found = conditions.flatMap((condition) => condition.results.filter((each) => each.files && each.response.p50 && !each.void.length).map((result) => ({ ...result, query: condition.query, rows: condition.rows })));
  if (new Set(found.map((each) => each.files)).size < 2) return;
  const grid = element("div", { class: "grid" });
  for (const [query, results] of grouped(found, (each) => each.query)) {
    const counts = [...new Set(results.map((each) => each.files))].sort((a, b) => a - b);
    const lines = [...grouped(results, (each) => `${each.label}, ${brief(each.rows)} rows`)];
    const columns = lines.map(([, same]) => counts.map((count) => same.find((each) => each.files === count)?.response.p50.value ?? null));
    const sizes = [...new Set(results.map((each) => each.rows))];
    const series = lines.map(([label, same]) => ({ label, stroke: hue(same[0].store), dash: DASHES[sizes.indexOf(same[0].rows) % DASHES.length] }));
    grid.append(plot(query, [counts, ...columns], series, { log: true, x: { distr: 3 }, xLabel: "files read", yLabel: "p50, ms" }));
  }
  if (grid.children.length) page.append(element("h3", {}, "Response time against files"), grid);
}

function writes() {
  if (!data.writes.length) return;
  section("Writes", "Rows are offered at fixed times. Response time counts from the intended time of a request to its reply, freshness from there until a query of the store reads the rows.");
  const rows = data.writes.map((each) => ({ cells: [
    each.phase, each.rate.toLocaleString("en"), estimate(each.sustained),
    ...QUANTILES.map((quantile) => estimate(each.response[quantile], quantile)),
    [each.accepted, each.refused, each.indeterminate].map((count) => count.toLocaleString("en")).join(" / "),
    each.void.length ? element("span", { class: "tag bad" }, "void") : element("span", { class: each.held ? "tag good" : "tag bad" }, each.held ? "held" : "not held"),
  ] }));
  page.append(table(["phase", "rows/min offered", "accepted, rows/min", ...QUANTILES.map((each) => `${each}, ms`), "accepted / refused / indeterminate", ""], rows, [1, 2, 3, 4, 5, 6, 7]));
  const reasons = data.writes.filter((each) => each.unheld.length);
  if (reasons.length) page.append(table(["rows/min", "not held, because"], reasons.map((each) => ({ cells: [`${each.phase} ${each.rate.toLocaleString("en")}`, each.unheld.join("; ")] }))));
  shares();
  const grid = element("div", { class: "grid" });
  const ordered = [...new Map([...data.writes].sort((a, b) => a.rate - b.rate).map((each) => [each.rate, each])).values()];
  const rates = ordered.map((each) => each.rate);
  if (rates.length > 1) {
    const knee = data.knee && data.knee.rate ? (self) => upright(self, data.knee.rate, "knee") : null;
    grid.append(plot("Accepted against offered", [rates, ordered.map((each) => each.sustained.value), rates], [{ label: "accepted", stroke: color("postgres") }, { label: "offered", stroke: color("soft"), dash: [4, 4], points: { show: false } }], { log: true, x: { distr: 3 }, xLabel: "rows/min offered", yLabel: "rows/min", draw: knee }));
    grid.append(plot("Response time against load", [rates, ...QUANTILES.map((quantile) => ordered.map((each) => each.response[quantile] && each.response[quantile].value))], QUANTILES.map((quantile, index) => ({ label: quantile, stroke: palette(index) })), { log: true, x: { distr: 3 }, xLabel: "rows/min offered", yLabel: "ms", draw: knee }));
    const stores = Object.keys(ordered[0].freshness);
    grid.append(plot("Freshness against load, p50", [rates, ...stores.map((store) => ordered.map((each) => each.freshness[store].p50 && each.freshness[store].p50.value))], stores.map((store) => ({ label: store, stroke: hue(store) })), { log: true, x: { distr: 3 }, xLabel: "rows/min offered", yLabel: "ms", draw: knee }));
  }
  if (grid.children.length) page.append(grid);
  page.append(element("h3", {}, "Freshness"), table(["rows/min", "store", ...QUANTILES.map((each) => `${each}, ms`), "drained after, s", "slope, s/s"], data.writes.flatMap((each) => Object.entries(each.freshness).map(([store, quantiles], index) => ({ first: index === 0, cells: [
    index === 0 ? `${each.phase} ${each.rate.toLocaleString("en")}` : "", element("span", {}, dot(hue(store)), store),
    ...QUANTILES.map((quantile) => estimate(quantiles[quantile], quantile)),
    each.drained[store] === null ? "not in time" : number(each.drained[store]), store in each.slope ? number(each.slope[store]) : "-",
  ] }))), [2, 3, 4, 5, 6, 7]));
  costs("CPU-seconds of a million rows", "cpu", (value) => `${number(value)} s`);
  costs("Bytes on disk of a row", "disk", (value) => `${number(value / 1e6)} B`);
}
function shares() {
  const arms = [...new Set(data.writes.flatMap((each) => Object.keys(each.shares)))];
  if (!arms.length) return;
  const scaled = (value, factor) => ({ value: value.value * factor, low: value.low * factor, high: value.high * factor });
  page.append(element("h3", {}, "Shares of the control arms"), element("p", { class: "soft small" }, "The sustained rows a second, and what share they are of those of a component without the pipeline"));
  page.append(table(["rows/min", "accepted, rows/s", ...arms.map((arm) => `of ${arm}, %`)], data.writes.map((each) => ({ cells: [
    `${each.phase} ${each.rate.toLocaleString("en")}`, estimate(scaled(each.sustained, 1 / 60)), ...arms.map((arm) => estimate(scaled(each.shares[arm], 100))),
  ] })), [1, ...arms.map((_, index) => index + 2)]));
}
function upright(self, value, name) {
  const at = self.valToPos(value, "x", true), context = self.ctx;
  context.save();
  context.strokeStyle = context.fillStyle = color("bad");
  context.setLineDash([3, 3]);
  context.beginPath();
  context.moveTo(at, self.bbox.top);
  context.lineTo(at, self.bbox.top + self.bbox.height);
  context.stroke();
  context.textAlign = "left";
  context.fillText(name, at + 6, self.bbox.top + 12);
  context.restore();
}
function family(component) {
  // Components have the colour of the store that they serve.
  if (/postgres|ingest/.test(component)) return "postgres";
  if (/clickhouse|stream-to-store/.test(component)) return "clickhouse";
  if (/lake|node|spark/.test(component)) return "lake";
  return component.startsWith("kafka") ? "spark" : "other";
}
function costs(title, name, shown) {
  const found = data.writes.filter((each) => Object.values(each[name]).some((value) => value > 0));
  if (!found.length) return;
  const card = element("div", { class: "card" }, element("h3", { style: "margin-top:0" }, title));
  const components = [...new Set(found.flatMap((each) => Object.keys(each[name]).filter((key) => each[name][key] > 0)))];
  const most = Math.max(...found.map((each) => components.reduce((sum, key) => sum + Math.max(0, each[name][key] || 0), 0)));
  components.sort((a, b) => HUES.indexOf(family(a)) - HUES.indexOf(family(b)) || a.localeCompare(b));
  const shade = (index) => {
    const before = components.slice(0, index).filter((each) => family(each) === family(components[index])).length;
    return `color-mix(in oklab, ${color(family(components[index]))} ${Math.max(100 - 28 * before, 25)}%, var(--card))`;
  };
  for (const each of found) {
    const total = components.reduce((sum, key) => sum + Math.max(0, each[name][key] || 0), 0);
    const bar = element("div", { class: "bar", style: `width:${(100 * total) / most}%` });
    components.forEach((key, index) => { if ((each[name][key] || 0) > 0) bar.append(element("span", { style: `width:${(100 * each[name][key]) / total}%;background:${shade(index)}`, title: `${key}: ${shown(each[name][key])}` })); });
    card.append(element("div", { class: "small soft" }, `${each.phase} ${each.rate.toLocaleString("en")} rows/min: ${shown(total)} in all${name === "cpu" && each.mb_per_cpu_second ? `, ${number(each.mb_per_cpu_second)} MB/s a core` : ""}`), bar);
  }
  const last = found[found.length - 1];
  card.append(element("div", { class: "legend" }, ...components.map((key, index) => element("span", {}, dot(shade(index)), `${key} ${shown(last[name][key] || 0)}`))));
  page.append(card);
}

function loads() {
  if (!data.loads.length) return;
  section("Load by k6", `The highest arrival rate that was held. Held: ${data.slo}.`);
  const rows = data.loads.map((each) => ({ cells: [
    each.scenario, element("span", {}, dot(hue(each.store)), each.label), number(each.rate), each.beyond ? number(each.beyond) : "-",
    ...QUANTILES.map((quantile) => estimate(each.response[quantile], quantile)), each.missed.join("; "),
  ] }));
  page.append(table(["scenario", "store", "held, 1/s", "not held, 1/s", ...QUANTILES.map((each) => `${each}, ms`), "because"], rows, [2, 3, 4, 5, 6, 7]));
}

function faults() {
  if (!data.faults.length) return;
  section("Faults", "A component is killed while rows come in. Recovered: from then on nothing took twice as long as the slowest before the kill.");
  const seconds = (values) => values.map((value) => (value === null ? "never" : number(value))).join(" / ");
  page.append(table(["killed", "replies recovered, s", "freshness recovered, s", "accepted / refused / indeterminate", ""], data.faults.map((each) => ({ cells: [
    each.component, seconds(each.recovered),
    Object.entries(each.visible).map(([store, values]) => `${store} ${seconds(values)}`).join(", "),
    [each.accepted, each.refused, each.indeterminate].map((count) => count.toLocaleString("en")).join(" / "),
    each.void.length ? element("span", { class: "tag bad" }, "void") : element("span", { class: "tag good" }, "no accepted row lost"),
  ] })), [3]));
  const grid = element("div", { class: "grid" });
  for (const each of data.faults) {
    const line = each.timeline;
    grid.append(plot(`${each.component} killed`, [line.map((second) => second.at), line.map((second) => Math.max(second.slowest_ms, 0.1))], [{ label: "slowest reply of each second", stroke: color("postgres"), points: { show: false } }], { log: true, xLabel: "s", yLabel: "ms", draw: (self) => upright(self, each.fault_at, "killed") }));
  }
  page.append(grid);
}

function closing() {
  if (data.controls.length) {
    section("Control arms", "Limits of the machine and of components, measured in the same run without the pipeline.");
    page.append(table(["arm", "", "value"], data.controls.flatMap((each) => Object.entries(each.values).map(([name, value], index) => ({ first: index === 0, cells: [index === 0 ? each.arm : "", name, estimate(value)] }))), [2]));
  }
  section("What was measured, and with what");
  for (const [title, pairs] of [["Target", data.target], ["Machine of the driver", data.machine], ["Versions", data.versions], ["Settings", data.settings]]) {
    const rows = Object.entries(pairs).map(([name, value]) => ({ cells: [name, value] }));
    if (rows.length) page.append(element("h3", {}, title), table(["", ""], rows));
  }
  page.append(element("p", { class: "soft small" }, "Every number is computed from the samples beside this file: logpipe bench recheck FOLDER computes them again."));
}

opening();
reads("Reads", "Every store gets the same query as of the same batch, in random order, in each repeat.", data.reads);
reads("Reads while rows come in", "One store is read while rows are written at a share of the knee.", data.mixed);
writes();
loads();
faults();
closing();
