"""How values are written, matched and masked: plain functions on text."""
