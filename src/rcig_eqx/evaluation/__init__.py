"""Fresh networks trained on a distilled set, and what they say of it."""
