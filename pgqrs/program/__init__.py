"""The user's program: finding and importing the user's functions, and starting processes that do
so.
"""
