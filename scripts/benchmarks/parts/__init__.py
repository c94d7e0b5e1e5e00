"""What benchmarks are made of beside the harness: inputs, cases, and what is kept of them."""
