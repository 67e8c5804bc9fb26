"""The learning experiments: one config per experiment, each a command; README.md says how to run them.

configs     permuted_mnist_packnet.py permuted_mnist_clnp.py permuted_mnist_baselines.py
            eight_domains.py cifar_then_tiny.py findings.py exhaustion.py large_task.py few_images.py
            many_small_tasks.py unknown_task.py sizes.py
photographs photographs.py (flags) variants.py (methods) contest.py subsets.py
shared      options.py permuted.py packing.py ledger.py record.py speed.py
baselines   baselines/ (not servable: they end in a network, not in a store)
"""
