"""JSON-RPC: bytes to messages, strictly."""
