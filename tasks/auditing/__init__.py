"""What the stages `audit` and `audit_external` look for in images."""
