"""What is fitted on the data before the first step: statistics, tokenizer, FAST, the untrained policy."""
