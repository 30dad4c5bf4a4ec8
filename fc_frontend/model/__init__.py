"""The values that all stages share.  Imports nothing of ours."""
