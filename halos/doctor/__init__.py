"""What this machine and account can run."""
