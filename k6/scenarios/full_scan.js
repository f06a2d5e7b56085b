// A search for a text that no row has.
import { options as configured } from '../lib/config.js';
import { query } from '../lib/requests.js';

export { handleSummary } from '../lib/summary.js';
export const options = configured();

export default function () {
  query('', { q: 'no row has this text', limit: 1, count: 'none' });
}
