"""The learning experiments: one config per experiment, each a command; README.md says how to run them.

configs     permuted_mnist_packnet.py permuted_mnist_clnp.py permuted_mnist_baselines.py
shared      options.py permuted.py packing.py ledger.py record.py clock.py
baselines   baselines/ (not servable: they end in a network, not in a store)
"""
