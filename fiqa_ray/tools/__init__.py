"""What is behind the commands: run, plan, status, doctor, score."""
