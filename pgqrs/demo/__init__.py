"""`pgqrs demo`: the standard library's source, measured and compressed on every core, durably."""
