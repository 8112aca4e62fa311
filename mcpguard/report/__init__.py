"""Shows what is in the audit log: reports, exports."""
