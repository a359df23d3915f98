"""What a supervisor asks of the machine: who it is, CPU quotas, the out-of-memory killer."""
