"""A worker process: runs side by side in lanes or on an event loop, what it says, its board and its output."""
