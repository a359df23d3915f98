"""`pgqrs demo`: measures and compresses the standard library's source on every core, durably."""
