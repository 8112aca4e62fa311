"""What every store promises, tested against each."""
