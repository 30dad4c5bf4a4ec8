"""Pod discovery: query cluster DNS, and decide which of its answers to use."""
