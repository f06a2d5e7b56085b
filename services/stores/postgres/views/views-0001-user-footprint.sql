-- The footprints under the names of the system before this one, for people who query them by SQL.
CREATE OR REPLACE VIEW user_footprint AS
    SELECT id, link, method AS request, footprint_time, created_at AS execute_time, status, duration_ms, route, service
    FROM footprints;

COMMENT ON VIEW user_footprint IS 'Requests that services have answered, one row each';
COMMENT ON COLUMN user_footprint.id IS 'Row id, the same in every store: batch id * 2^17 + row number';
COMMENT ON COLUMN user_footprint.link IS 'Path of the request';
COMMENT ON COLUMN user_footprint.request IS 'HTTP method of the request';
COMMENT ON COLUMN user_footprint.footprint_time IS 'When the request was made, as the service says';
COMMENT ON COLUMN user_footprint.execute_time IS 'When the row was stored, by the clock of PostgreSQL';
COMMENT ON COLUMN user_footprint.status IS 'HTTP status of the answer; null if it was not sent';
COMMENT ON COLUMN user_footprint.duration_ms IS 'Milliseconds until the answer; null if they were not sent';
COMMENT ON COLUMN user_footprint.route IS 'Template of the path, such as /users/{id}; empty if it was not sent';
COMMENT ON COLUMN user_footprint.service IS 'Service that has answered; empty if it was not sent';
