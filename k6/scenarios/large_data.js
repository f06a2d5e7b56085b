// 10,000 rows.
import { options as configured } from '../lib/config.js';
import { query } from '../lib/requests.js';

export { handleSummary } from '../lib/summary.js';
export const options = configured();

export default function () {
  query('', { limit: 10000, count: 'none' });
}
