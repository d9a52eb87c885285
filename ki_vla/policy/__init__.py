"""A model as a policy: bundle on disk, processor, subtasks, real-time chunking."""
