"""The worker process: runs in lanes or on an event loop, its frames, its board and its output."""
