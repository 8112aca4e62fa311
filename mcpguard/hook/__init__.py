"""What clients run before each call of a tool: it tells which agent calls, and decides calls that no wrapper sees."""
