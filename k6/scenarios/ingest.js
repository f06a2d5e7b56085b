// 100 rows into the ingest API.
import { options as configured } from '../lib/config.js';
import { send } from '../lib/requests.js';

export { handleSummary } from '../lib/summary.js';
export const options = configured();

const LEVELS = ['INFO', 'DEBUG', 'WARN', 'ERROR'];

export default function () {
  const timestamp = new Date().toISOString();
  send(Array.from({ length: 100 }, (_, row) => ({ timestamp, level: LEVELS[row % 4], service: 'k6', host: 'k6', message: `row ${row}` })));
}
