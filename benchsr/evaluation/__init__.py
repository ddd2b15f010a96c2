"""From a protocol to records: plan, workers, executors, cache, ledger."""
