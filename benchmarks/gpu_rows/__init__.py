"""The parts of benchmarks/gpu.py: bench.py measures, tasks.py and rival.py are measured, rows.py are the targets."""
