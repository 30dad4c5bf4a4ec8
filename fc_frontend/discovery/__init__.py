"""Where the pods are: what cluster DNS says, and how much of it is to be believed."""
