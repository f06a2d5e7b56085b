// Times between instants and the clock of a time zone, as the inputs of a browser spell them: 2026-01-31T12:00:00.

const formats = new Map();

function format(zone) {
  if (!formats.has(zone)) {
    formats.set(zone, new Intl.DateTimeFormat("sv", {
      timeZone: zone, year: "numeric", month: "2-digit", day: "2-digit",
      hour: "2-digit", minute: "2-digit", second: "2-digit",
    }));
  }
  return formats.get(zone);
}

export const zones = () => ["UTC", ...Intl.supportedValuesOf("timeZone")];

export const ownZone = () => Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

export const clock = (instant, zone) => format(zone).format(new Date(instant)).replace(" ", "T");

// The instant, as ISO 8601 in UTC, at which the clock shows `text`. Of two such instants the later one; a time that the
// clock skips counts as if it had not been put forward.
export function instant(text, zone) {
  const shown = Date.parse(`${text}Z`);
  let found = shown;
  for (let round = 0; round < 2; round++) found += shown - Date.parse(`${clock(found, zone)}Z`);
  return new Date(found).toISOString();
}
