"""What the report says and shows."""
