// What every scenario leaves at its end: a line for people, and JSON where SUMMARY names a file.
export function handleSummary(data) {
  const times = data.metrics.answered ? data.metrics.answered.values : {};
  const dropped = data.metrics.dropped_iterations ? data.metrics.dropped_iterations.values.count : 0;
  const shown = ['count', 'med', 'p(90)', 'p(99)', 'max'].map((name) => `${name} ${(times[name] || 0).toFixed(1)}`).join(', ');
  const files = { stdout: `answered in ms: ${shown}; dropped ${dropped}\n` };
  if (__ENV.SUMMARY) files[__ENV.SUMMARY] = JSON.stringify(data);
  return files;
}
