"""Is this VM fit to be a frontend?

    observe/    looks at the VM, cluster DNS, HAProxy and the API server: facts
    judge/      facts → findings, pure
    examine     all of it at once, within bounds of time

Nothing here changes anything, anywhere.
"""
