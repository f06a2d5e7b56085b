// Rows by level.
import { options as configured } from '../lib/config.js';
import { query } from '../lib/requests.js';

export { handleSummary } from '../lib/summary.js';
export const options = configured();

export default function () {
  query('/aggregate', { group_by: 'level' });
}
