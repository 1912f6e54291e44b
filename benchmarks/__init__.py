"""What a row costs: CPU in the client, memory, the time of a resume. Figures and commands: docs/benchmarks.md."""
