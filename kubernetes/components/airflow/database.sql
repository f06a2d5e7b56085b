-- Airflow's role and database, beside the pipeline's. The limit is part of the budget of max_connections.
\set ON_ERROR_STOP on
\getenv password AIRFLOW_DATABASE_PASSWORD
SELECT 'CREATE ROLE airflow LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'airflow') \gexec
ALTER ROLE airflow PASSWORD :'password' CONNECTION LIMIT 20;
SELECT 'CREATE DATABASE airflow OWNER airflow'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'airflow') \gexec
