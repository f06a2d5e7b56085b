"""What every process shares: settings, logging, metrics, the HTTP app, auth, health, background threads, shutdown."""
