"""The functions that the measured supervisors execute."""
