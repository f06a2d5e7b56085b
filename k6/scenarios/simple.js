// The newest 100 rows of a service.
import { options as configured } from '../lib/config.js';
import { query } from '../lib/requests.js';

export { handleSummary } from '../lib/summary.js';
export const options = configured();

export default function () {
  query('', { service: 'auth-service', limit: 100, count: 'none' });
}
