// The requests of all scenarios. Each adds its response time, with its outcome, to the metric `answered`.
import { check } from 'k6';
import http from 'k6/http';
import { Trend } from 'k6/metrics';

import { dataset, headers, ingestUrl, queryUrl, store } from './config.js';

const answered = new Trend('answered', true);
const MEASURED = { method: 'scan', cache: 'off' };

function spelled(parameters) {
  return Object.entries(parameters).map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join('&');
}

function noted(reply, outcome) {
  answered.add(reply.timings.blocked + reply.timings.duration, outcome);
}

// `path`: what follows the dataset.
export function query(path, parameters) {
  const reply = http.get(`${queryUrl}/${store}/${dataset}${path}?${spelled({ ...parameters, ...MEASURED })}`, { headers, timeout: '120s' });
  const method = reply.status === 200 ? reply.json('method') : '';
  check(reply, { 'status is 200': () => reply.status === 200, 'by scan': () => method === 'scan' });
  noted(reply, { code: String(reply.status), by: method });
}

export function compare(parameters) {
  const reply = http.get(`${queryUrl}/compare?${spelled(parameters)}`, { headers, timeout: '120s' });
  const agree = reply.status === 200 && reply.json('answers_agree') === true;
  check(reply, { 'status is 200': () => reply.status === 200, 'results agree': () => agree });
  noted(reply, { code: agree ? '200' : `${reply.status}, results differ`, by: 'scan' });
}

export function send(rows) {
  const reply = http.post(`${ingestUrl}/api/collect/logs`, JSON.stringify(rows), { headers: { ...headers, 'Content-Type': 'application/json' } });
  check(reply, { accepted: () => reply.status === 200 && reply.json('count') === rows.length });
  noted(reply, { code: String(reply.status), by: 'scan' });
}
