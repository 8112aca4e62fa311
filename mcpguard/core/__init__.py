"""The guard's decisions: pure, synchronous, without I/O or a clock."""
