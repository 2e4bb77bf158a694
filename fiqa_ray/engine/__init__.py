"""How a step runs: in this process or on Ray, under the lock of the run, with progress."""
