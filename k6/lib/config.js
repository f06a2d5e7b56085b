// What the environment says.
const profile = JSON.parse(open(`../profiles/${__ENV.PROFILE || 'smoke'}.json`));

export const store = __ENV.STORE || 'postgres';
export const dataset = __ENV.DATASET || 'logs';
export const queryUrl = `${__ENV.BASE_URL || 'http://127.0.0.1:30801'}/api/query`;
export const ingestUrl = __ENV.INGEST_URL || 'http://127.0.0.1:8081';
export const headers = __ENV.TOKEN ? { Authorization: `Bearer ${__ENV.TOKEN}` } : {};

function executor() {
  const users = { preAllocatedVUs: profile.users, maxVUs: profile.users };
  if (__ENV.RATE) {
    return { executor: 'constant-arrival-rate', rate: Number(__ENV.RATE), timeUnit: '1s', duration: `${__ENV.SECONDS}s`, ...users };
  }
  return { ...profile.executor, timeUnit: '1s', ...users };
}

// The options of every scenario. Thresholds fail a run by a profile; a search of the rate judges by itself.
export function options() {
  return {
    scenarios: { main: executor() },
    thresholds: __ENV.RATE ? {} : profile.thresholds,
    summaryTrendStats: ['count', 'min', 'med', 'p(90)', 'p(95)', 'p(99)', 'max'],
    discardResponseBodies: false,
  };
}
