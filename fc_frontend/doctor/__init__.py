"""Check whether this VM meets the prerequisites of a frontend.

    observe/    collects facts about the VM, cluster DNS, HAProxy and the API server
    judge/      facts → findings, pure
    examine     runs all of it concurrently, with timeouts

Nothing here changes anything, anywhere.
"""
