"""A Hub on the loopback interface, for tests with the real clients."""
