"""Statistics, reports and exports: reads the audit log and the counters, never on a call's path."""
