// The same query to all stores at once.
import { options as configured } from '../lib/config.js';
import { compare } from '../lib/requests.js';

export { handleSummary } from '../lib/summary.js';
export const options = configured();

export default function () {
  compare({ question: 'aggregate', group_by: 'level' });
}
