"""What mcpguard costs, beside what stands in the same place; run with `python -m tests.benchmarks`."""
