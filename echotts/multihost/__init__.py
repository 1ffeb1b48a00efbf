"""The processes of one run: joining, coordinator messages, stopping together."""
