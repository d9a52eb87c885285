"""The tasks: what stands where, what is asked in which words, and when it is done."""
