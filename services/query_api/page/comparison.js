// What the stores' results have in common: their times by panel, whether they agree, and which of them differ.

import { count, make, milliseconds } from "./dom.js";

// Returns the results in groups of equal ones: [{ sources, data }], the largest group first. `order`: of the sources.
export function versions(results, order) {
  const groups = new Map();
  for (const source of order.filter(each => each in results)) {
    const { digest, data } = results[source];
    if (!groups.has(digest)) groups.set(digest, { sources: [], data });
    groups.get(digest).sources.push(source);
  }
  return [...groups.values()].sort((a, b) => b.sources.length - a.sources.length);
}

// `replies`: [title, reply] of the panels that are there so far. `labels`: source -> label, of all stores.
export function drawComparison(replies, labels) {
  const sources = Object.keys(labels), sums = Object.fromEntries(sources.map(source => [source, 0])), body = make("tbody");
  for (const [title, reply] of replies) {
    const row = make("tr", {}, make("th", { scope: "row" }, title));
    for (const source of sources) {
      const result = reply.results[source];
      if (result) sums[source] += result.query_time_ms;
      else delete sums[source];
      row.append(time(result?.query_time_ms, source === reply.comparison.faster));
    }
    row.append(agreement(reply.answers_agree));
    body.append(row);
  }
  const least = Math.min(...Object.values(sums)), agreed = replies.map(([, reply]) => reply.answers_agree);
  const foot = make("tr", {}, make("th", { scope: "row" }, "All"),
    ...sources.map(source => time(sums[source], sums[source] === least)), agreement(overall(agreed)));
  const heads = ["", ...Object.values(labels), "Equal"].map(text => make("th", { scope: "col" }, text));
  const table = make("table", { class: "times" },
    make("thead", {}, make("tr", {}, ...heads)), body, make("tfoot", {}, foot));
  const batch = count(replies[0][1].as_of);
  const about = make("p", { class: "took" }, `As of batch ${batch}, up to which each of these stores is loaded.`);
  return [table, ...reasons(replies, labels), about];
}

function overall(agreed) {
  if (agreed.includes(false)) return false;
  return agreed.includes(null) ? null : true;
}

function reasons(replies, labels) {
  const told = new Map(replies.flatMap(([, reply]) => Object.entries(reply.missing)));
  return [...told].map(([source, reason]) => make("p", { class: "warned" }, `${labels[source]} gave no result: ${reason}`));
}

function time(value, isFastest) {
  if (value === undefined) return make("td", { class: "soft" }, "–");
  const text = milliseconds(value);
  return isFastest ? make("td", { class: "fastest", title: "the fastest" }, text) : make("td", {}, text);
}

function agreement(agree) {
  if (agree === null) return make("td", { class: "soft" }, "only one");
  return agree ? make("td", { class: "equal" }, "yes") : make("td", { class: "differs" }, "no");
}
