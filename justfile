# Create the virtual environment that .ci/run uses
setup:
    test -x .ci/venv/bin/python || python3 -m venv .ci/venv && .ci/venv/bin/pip install --quiet --editable '.[dev]'

# Lint, types, architecture, manual and tests
check:
    .ci/run

# The tests, or some of them: just test tests/limiter -k window
test *arguments:
    .ci/venv/bin/python -m pytest -n 4 {{ arguments }}

# Measure speed: just bench --help
bench *arguments:
    .ci/venv/bin/python -m tests.benchmarks {{ arguments }}

# The demo, which takes about ten seconds
demo:
    .ci/venv/bin/mcpguard demo
