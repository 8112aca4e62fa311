# Make the virtual environment that .ci/run uses, with what development needs
setup:
    test -x .ci/venv/bin/python || python3 -m venv .ci/venv && .ci/venv/bin/pip install --quiet --editable '.[dev]'

# Everything that must hold
check:
    .ci/run

# The tests, or some of them: just test tests/core -k window
test *arguments:
    .ci/venv/bin/python -m pytest -n 4 {{ arguments }}

# The figures of speed: just bench --help
bench *arguments:
    .ci/venv/bin/python -m tests.benchmarks {{ arguments }}

# The demo: half a minute of limits
demo:
    .ci/venv/bin/mcpguard demo
