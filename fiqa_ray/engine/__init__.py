"""How the steps of a job run: here or on Ray, under the lock of the run; what they cost; and how a job is submitted."""
