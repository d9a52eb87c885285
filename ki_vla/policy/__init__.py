"""A model as a policy: its bundle on disk, its processor, its words, its continuation of a running chunk."""
