"""Facts about the machine: the identity of the process, CPU quotas, the out-of-memory killer."""
