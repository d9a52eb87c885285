"""Running a policy: one interface, several backends. Start with `select.open_engine`."""
