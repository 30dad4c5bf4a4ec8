"""Values shared by all stages.  Imports nothing of fc-frontend's own."""
