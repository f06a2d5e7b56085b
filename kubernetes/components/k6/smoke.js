// Half a minute of small requests: rows in, rows out. The benchmarks bring scripts that measure.
import { check } from 'k6';
import http from 'k6/http';

const headers = { Authorization: `Bearer ${__ENV.TOKEN}`, 'Content-Type': 'application/json' };

export const options = {
  scenarios: {
    ingest: { executor: 'constant-arrival-rate', exec: 'ingest', rate: 10, timeUnit: '1s', duration: '30s', preAllocatedVUs: 10 },
    query: { executor: 'constant-arrival-rate', exec: 'query', rate: 2, timeUnit: '1s', duration: '30s', preAllocatedVUs: 10 },
  },
  thresholds: {
    checks: ['rate==1'],
    'http_req_duration{scenario:ingest}': ['p(99)<1000'],
  },
};

export function ingest() {
  const rows = Array.from({ length: 100 }, () => ({
    timestamp: new Date().toISOString(),
    level: 'INFO',
    service: 'k6',
    message: 'smoke test',
  }));
  const reply = http.post(`${__ENV.INGEST_URL}/api/collect/logs`, JSON.stringify(rows), { headers });
  check(reply, { accepted: (r) => r.status === 200 && r.json('count') === rows.length });
}

export function query() {
  for (const store of ['postgres', 'clickhouse', 'hdfs']) {
    const url = `${__ENV.QUERY_URL}/api/query/${store}/logs?service=k6&limit=10&count=none`;
    const reply = http.get(url, { headers, tags: { store } });
    check(reply, { answered: (r) => r.status === 200 });
  }
}
