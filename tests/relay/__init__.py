"""The parts that move bytes, each with real pipes and processes."""
