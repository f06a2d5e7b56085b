// What the page shows, as the address says it: the address is the link to share.

import { ownZone } from "./zone.js";

export const EVERY_STORE = "compare";

const LAST = "24h";

export function read() {
  const sent = new URLSearchParams(location.search);
  const [start, end] = [sent.get("start_time"), sent.get("end_time")];
  const period = start && end ? { start, end } : { last: sent.get("last") || LAST };
  return { ...period, zone: sent.get("zone") || ownZone(), store: sent.get("store") || "", live: sent.has("live") };
}

export const period = state => state.last ? { last: state.last } : { start_time: state.start, end_time: state.end };

export function write(state) {
  const parameters = new URLSearchParams({ ...period(state), zone: state.zone, store: state.store });
  if (state.live) parameters.set("live", "");
  const address = `${location.pathname}?${parameters}`;
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
}
