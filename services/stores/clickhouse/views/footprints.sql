-- The footprints under the names of the system before this one, for people who query them by SQL.
CREATE VIEW IF NOT EXISTS user_footprint AS
    SELECT id, link, method AS request, footprint_time_utc AS footprint_time, created_at_utc AS execute_time,
           status, duration_ms, route, service
    FROM footprints
