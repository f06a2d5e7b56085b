// Lookups, some aggregates and some sorts, by chance.
import { options as configured } from '../lib/config.js';
import { query } from '../lib/requests.js';

export { handleSummary } from '../lib/summary.js';
export const options = configured();

export default function () {
  const chance = Math.random();
  if (chance < 0.7) query('', { service: 'auth-service', limit: 100, count: 'none' });
  else if (chance < 0.9) query('/aggregate', { group_by: 'level' });
  else query('', { order_by: 'level', limit: 100, count: 'none' });
}
