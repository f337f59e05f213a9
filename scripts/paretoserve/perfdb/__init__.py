"""The performance database: measured operator latencies, their schema, origin and import."""
