"""What the supervisors under test are pointed at."""
